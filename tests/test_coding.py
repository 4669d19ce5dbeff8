"""Tiles, previews, and where float16 is too narrow."""

import copy
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ldm
from ldm.errors import InputError, NumericError
from ldm.previews import KNOWN, fitted
from ldm.tiles import spans, tiled
from tests.reduced import REDUCED
from tests.reduced import make as reduced
from tests.tiny import error, hooked, make, unit_noise


@pytest.fixture(scope="module")
def pipe():
    return make()


@pytest.mark.parametrize(("h", "w", "tile"), [(40, 24, 16), (17, 33, 8), (16, 64, 16)])
def test_what_looks_at_its_pixel_alone_is_the_same_in_squares(h, w, tile):
    x = unit_noise(0, 2, 3, 2 * h, 2 * w)
    assert error(tiled(F.silu, x, tile, (2, 2)), F.silu(x)) <= 1e-6
    halved = tiled(lambda x: F.avg_pool2d(x, 2), x, tile, (2, 1))
    assert error(halved, F.avg_pool2d(x, 2)) <= 1e-6
    doubled = tiled(lambda x: F.interpolate(x, scale_factor=2), x, tile, (1, 2))
    assert error(doubled, F.interpolate(x, scale_factor=2)) <= 1e-6


@pytest.mark.parametrize("length", range(1, 80, 7))
def test_squares_cover_a_side_and_overlap_by_a_quarter(length):
    places = spans(length, 16)
    assert places[0][0] == 0 and places[-1][1] == length
    assert all(0 <= a < b <= length and b - a == min(16, length) for a, b in places)
    assert all(b - c >= 4 - 1 for (_, b), (c, _) in pairwise(places))


def seam(off, places):
    """How much more a difference to the whole jumps where squares end than elsewhere. [b 3 H W]"""
    jumps = (off[..., 1:] - off[..., :-1]).abs().mean(dim=(0, 1, 2))
    ends = sorted({4 * end - 1 for pair in places for end in pair if 0 < end < 64})
    others = [i for i in range(len(jumps)) if i not in ends]
    return float(jumps[ends].mean() / jumps[others].mean())


def test_tiles_of_a_trained_model_have_no_seams():
    pipe = ldm.load()
    prompts = ["a large red circle on a navy background"] * 4
    row = pipe(prompts, seed=0, output_type="latent", num_inference_steps=10, progress=False).latents
    z = torch.cat(list(row), dim=-1)[None].repeat(1, 1, 4, 1)  # 256 pixels
    whole, parts = pipe.decode(z), pipe.decode(z, tile=96)
    places = spans(64, 24)
    assert seam(parts - whole, places) < 1.5
    cut = torch.cat([pipe.decode(piece) for piece in z.split(24, dim=-1)], dim=-1)  # side by side
    assert seam(cut - whole, [(0, 24), (24, 48), (48, 64)]) > 4
    assert float((parts - whole).square().mean()) < 0.01  # of a range of 4


def test_a_call_with_tiles_is_a_call_that_decodes_in_tiles(pipe):
    options = {"num_inference_steps": 2, "seed": 1, "height": 48, "width": 32, "progress": False}
    drawn = pipe("a cat", tile=16, output_type="pt", **options)
    assert error(drawn.images, pipe.decode(drawn.latents, tile=16) / 2 + 0.5) <= 1e-6
    assert error(drawn.images, pipe.decode(drawn.latents) / 2 + 0.5) > 1e-4
    image = 2 * drawn.images[0] - 1
    near = pipe("a cat", image=image, strength=0.5, tile=16, output_type="latent", **options)
    far = pipe("a cat", image=image, strength=0.5, output_type="latent", **options)
    assert 1e-5 < error(near.latents, far.latents) < 1 and drawn.parameters["tile"] == 16


@pytest.mark.parametrize("tile", [-8, 7, 8, 17, 1e3, "16", 10**6])
def test_tiles_that_make_no_sense_are_refused(pipe, tile):
    for call in (
        lambda: pipe("a cat", tile=tile, num_inference_steps=1),
        lambda: pipe.decode(torch.zeros(1, 4, 8, 8), tile=tile),
        lambda: pipe.encode(torch.zeros(1, 3, 16, 16), tile=tile),
    ):
        with pytest.raises(InputError, match="tile"):
            call()


def test_previews_of_a_trained_model_are_the_pictures_made_small():
    pipe = ldm.load()
    z = pipe("three small blue squares on a white background", seed=1, output_type="latent", progress=False)
    found, small = ldm.previewer(pipe)(z.latents), F.avg_pool2d(pipe.decode(z.latents), 4)
    assert found.shape == small.shape and float((found - small).square().mean()) < 4 * 10**-2.5  # 25 dB
    assert float((found.flip(-1) - small).square().mean()) > 4 * 10**-2


@pytest.mark.parametrize(
    "latents", [None, "z", np.zeros((1, 4, 8, 8)), torch.zeros(4, 8, 8), torch.zeros(1, 3, 8, 8)]
)
def test_what_is_no_latent_has_no_preview(pipe, latents):
    with pytest.raises(InputError, match="latents must be"):
        ldm.previewer(pipe)(latents)


def test_tiles_are_heard_by_all_that_encodes_and_decodes(pipe):
    sizes = []
    with hooked(pipe.vae.decoder, lambda module, args, out: sizes.append(tuple(args[0].shape[-2:]))):
        ldm.denoise(pipe, np.zeros((32, 32, 3)), tile=16, progress=False)
        drawn = pipe("a", height=32, width=32, tile=16, record=True, num_inference_steps=2, progress=False)
        drawn.trajectory.sheet()
    assert set(sizes) == {(8, 8)}


def test_a_squares_results_are_added_as_they_come():
    alive, most = weakref.WeakSet(), 0

    class Counted:
        pass

    def function(x):
        nonlocal most
        mark = Counted()
        alive.add(mark)
        most = max(most, len(alive))
        out = x.clone()
        out.mark = mark  # lives as long as the tensor does
        return out

    tiled(function, torch.zeros(1, 1, 64, 64), 8, (1, 1))
    assert most <= 2


def test_published_maps_are_those_of_stable_diffusion(pipe):
    z = unit_noise(0, 2, 4, 8, 8)
    for name, scale in (("sd1", 0.18215), ("sd2-v", 0.18215), ("sdxl", 0.13025)):
        family = REDUCED[name]
        known = ldm.previewer(make(replace(family, vae=replace(family.vae, channels=(32,) * 4))))(z)
        *rows, bias = torch.tensor(KNOWN[scale])
        assert (
            error(
                known, (torch.einsum("bchw,cd->bdhw", z, torch.stack(rows)) + bias.view(3, 1, 1)).clamp(-1, 1)
            )
            <= 1e-6
        )
    assert fitted(pipe).shape == (5, 3)


@pytest.mark.slow
def test_an_autoencoder_that_overflows_float16_stays_in_float32(tmp_path):
    sdxl = reduced("sdxl")
    with torch.no_grad():
        sdxl.vae.decoder.conv_in.weight.mul_(1e4)
        sdxl.vae.decoder.conv_in.bias.mul_(1e4)
    z = unit_noise(0, 1, 4, 8, 8)
    whole = sdxl.decode(z)
    half = copy.deepcopy(sdxl).to(dtype=torch.float16)
    assert half.unet.conv_in.weight.dtype == torch.float16 and torch.equal(half.decode(z), whole)
    half.vae.to(torch.float16)  # as one asks for it oneself
    with pytest.raises(NumericError, match="decoding"):
        half.decode(z)
    ldm.save(sdxl, tmp_path / "a", layout="diffusers")
    loaded = ldm.load(tmp_path / "a", dtype=torch.float16)
    assert {p.dtype for p in loaded.vae.parameters()} == {torch.float32}
    assert {p.dtype for p in loaded.text_encoders[1].parameters()} == {torch.float16}
    config = tmp_path / "a" / "vae" / "config.json"
    assert '"force_upcast": true' in config.read_text()
    config.write_text(config.read_text().replace('"force_upcast": true', '"force_upcast": false'))
    narrow = ldm.load(tmp_path / "a", dtype=torch.float16)
    assert {p.dtype for p in narrow.vae.parameters()} == {torch.float16}
    assert reduced("sd1").to(dtype=torch.float16).vae.to_moments.weight.dtype == torch.float16


def test_a_picture_too_large_for_one_square_is_encoded_in_several(pipe):
    images = torch.tensor(np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 48)), dtype=torch.float32)
    z = pipe.encode(images, tile=16)
    assert z.shape == (1, 4, 16, 24) and 1e-4 < error(z, pipe.encode(images)) < 0.7
