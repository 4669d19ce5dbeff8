"""What is measured of an autoencoder: PSNR, pictures, and the scale that saved models have."""

from dataclasses import replace
from math import inf, log10

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm.errors import InputError
from ldm.training.draws import of_rows
from ldm.training.reconstruction import measured_scale, psnr, reconstructed, reconstruction_sheet, set_scale
from ldm.vae import VAE
from tests import tiny
from tests.tiny import read_all, unit_noise
from tests.training.test_autoencoder import KL, VQ, scenes


def test_psnr_by_hand():
    x = torch.zeros(3, 3, 4, 4)
    y = torch.tensor([0.2, 0.5, 0.0]).reshape(3, 1, 1, 1).expand_as(x)
    assert psnr(x, y).tolist() == pytest.approx([10 * log10(4 / 0.04), 10 * log10(4 / 0.25), inf])
    assert psnr(x + 1, y + 3).tolist() == [inf] * 3  # all of them white


@pytest.mark.parametrize("shape", [KL, VQ])
def test_a_sheet_shows_images_above_what_becomes_of_them(shape):
    vae, images = tiny.randomise(VAE(replace(shape, scale=0.7))), scenes(3)
    found = np.asarray(reconstruction_sheet(vae, images)).astype(float)
    assert found.shape == (64, 96, 3)
    y = reconstructed(vae, images)
    for i in range(3):
        columns = found[:, 32 * i : 32 * (i + 1)]
        for part, image in ((columns[:32], images[i]), (columns[32:], y[i])):
            assert np.abs(part / 127.5 - 1 - image.permute(1, 2, 0).numpy()).max() < 1 / 127
    mean, _ = vae.moments(images)
    z = mean if vae.codebook is None else vae.codebook(mean)
    assert torch.allclose(y, vae.decoder(vae.from_latent(z)).clamp(-1, 1), atol=1e-5) and not y.requires_grad


@pytest.mark.parametrize("shape", [KL, VQ])
def test_the_measured_scale_brings_other_images_to_unit_variance(shape):
    """Within 5 % on images that were not measured, of any size of batches."""
    vae = tiny.randomise(VAE(replace(shape, scale=3.0)))
    measured, others = scenes(96), scenes(96, skip=1000)
    scale = measured_scale(vae, measured.split(32), 96, seed=1)
    mean, logvar = vae.moments(others)
    eps = unit_noise(9, *mean.shape)
    z = mean if logvar is None else mean + (logvar / 2).exp() * eps
    assert (z * scale).std().item() == pytest.approx(1, abs=0.05) and abs(scale - 1) > 0.1
    assert measured_scale(vae, measured.split(11), 96, seed=1) == pytest.approx(scale, rel=1e-5)
    if logvar is not None:  # of samples, with the noise of the posterior
        mean, logvar = vae.moments(measured)
        (eps,) = of_rows(1, range(96), 0, mean.shape[1:])[1]
        z = mean + (logvar / 2).exp() * eps
        assert scale == pytest.approx(1 / z.double().std(correction=0).item(), rel=1e-5)


def test_no_more_images_are_asked_for_than_are_measured():
    vae, images = tiny.randomise(VAE(KL)), scenes(8)

    def endless():
        yield images[:5]
        yield images[5:]
        raise AssertionError("that was enough")

    assert measured_scale(vae, endless(), 7) == pytest.approx(measured_scale(vae, [images[:7]], 7), rel=1e-5)
    with pytest.raises(InputError, match="is to be of 9 images, and there are 8; give fewer"):
        measured_scale(vae, [images], 9)
    with pytest.raises(InputError, match="count must be from 1"):
        measured_scale(vae, [images], 0)


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_a_saved_model_has_the_scale(tmp_path, name):
    pipe = tiny.make()
    set_scale(pipe, 0.4321)
    z = pipe.vae.encode(torch.zeros(1, 3, 16, 16))
    ldm.save(pipe, tmp_path / name)
    found = ldm.load(tmp_path / name)
    assert found.vae.config == found.family.vae == pipe.family.vae and found.family.vae.scale == 0.4321
    assert torch.equal(found.vae.encode(torch.zeros(1, 3, 16, 16)), z)
    assert torch.allclose(z / 0.4321, tiny.make().vae.moments(torch.zeros(1, 3, 16, 16))[0], atol=1e-6)


def test_a_file_that_has_a_scale_of_its_own_gets_the_new_one(tmp_path):
    ldm.save(tiny.make(tiny.BARE), tmp_path / "a.safetensors")
    save_file(
        read_all(tmp_path / "a.safetensors") | {"scale_factor": torch.tensor(0.5)}, tmp_path / "b.safetensors"
    )
    pipe = ldm.load(tmp_path / "b.safetensors", family="sd1")
    assert pipe.family.vae.scale == 0.5
    set_scale(pipe, 0.25)
    for path in ("c.safetensors", "c"):
        ldm.save(pipe, tmp_path / path, "original" if path.endswith("s") else "diffusers")
        again = ldm.load(tmp_path / path)
        assert again.family.vae.scale == 0.25
    ldm.save(again, tmp_path / "d.safetensors", "original")
    assert ldm.load(tmp_path / "d.safetensors").family.vae.scale == 0.25
