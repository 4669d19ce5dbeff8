"""Decoding in bfloat16 is only where pictures stay what they are; encoding stays what it was."""

import logging
from math import inf

import pytest
import torch

pytest.importorskip("triton")

from ldm_kernels import precision
from ldm_kernels.precision import PARTS, agreement, narrow, picture

from tests import reduced
from tests.tiny import unit_noise


@pytest.fixture(autouse=True)
def no_gradients(monkeypatch):
    monkeypatch.setattr(precision, "SIDE", 16)  # as 64 is, in less time
    with torch.no_grad():
        yield


def dtypes(vae):
    """Of what encodes, and of what decodes."""
    decoding = {p.dtype for name in PARTS if (part := getattr(vae, name)) for p in part.parameters()}
    return {p.dtype for part in (vae.encoder, vae.to_moments) for p in part.parameters()}, decoding


@pytest.mark.parametrize("name", ["sdxl", "ldm-celeba256"])
def test_what_agrees_is_narrowed(name, caplog):
    caplog.set_level(logging.WARNING, "ldm")
    pipe = reduced.make(name)
    z, images = (
        unit_noise(1, 1, pipe.vae.config.latent_channels, 16, 16),
        torch.tanh(unit_noise(2, 1, 3, 32, 32)),
    )
    wanted, latents = pipe.decode(z), pipe.encode(images)
    narrow(pipe.vae, least=10.0)
    assert dtypes(pipe.vae) == ({torch.float32}, {torch.bfloat16}) and not caplog.records
    found = pipe.decode(z)
    assert found.dtype == torch.float32 and not torch.equal(found, wanted) and agreement(found, wanted) > 10
    assert torch.equal(pipe.encode(images), latents)
    assert torch.isfinite(pipe.encode(images, tile=0)).all()
    narrow(pipe.vae, least=inf)  # it is narrow already
    assert dtypes(pipe.vae)[1] == {torch.bfloat16}


def test_what_does_not_agree_stays_and_it_is_said(caplog):
    caplog.set_level(logging.WARNING, "ldm")
    pipe, z = reduced.make("sdxl"), unit_noise(1, 1, 4, 16, 16)
    wanted, decoder = pipe.decode(z), pipe.vae.decoder
    narrow(pipe.vae, least=200.0)
    assert dtypes(pipe.vae) == ({torch.float32}, {torch.float32}) and pipe.vae.decoder is decoder
    assert torch.equal(pipe.decode(z), wanted)
    (record,) = caplog.records
    assert record.message.startswith("the autoencoder decodes in torch.float32: ") and "200" in record.message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_as_narrow_stays(dtype):
    pipe = reduced.make("sd1").to(dtype=dtype)
    narrow(pipe.vae, least=0.0)
    assert dtypes(pipe.vae) == ({dtype}, {dtype})


def test_what_is_not_finite_stays(caplog):
    pipe = reduced.make("sd1")
    pipe.vae.decoder.conv_out.bias[0] = inf
    pipe.vae.decoder.conv_out.weight[0, 0] = -inf
    narrow(pipe.vae)
    assert dtypes(pipe.vae)[1] == {torch.float32} and "nan dB" in caplog.text


def test_agreement_in_decibels():
    a = unit_noise(0, 1, 3, 8, 8).clamp(-1, 1)
    assert agreement(a, a) == inf and agreement(a, a + 0.02) == pytest.approx(40, abs=1e-3)
    assert agreement(a, a + 0.021) < 40


def test_pictures_are_cut_off_as_a_pipeline_does():
    pipe, z = reduced.make("sd1"), unit_noise(1, 1, 4, 8, 8)
    pipe.vae.decoder.conv_out.weight.mul_(9)
    assert torch.equal(picture(pipe.vae, z), pipe.decode(z))
