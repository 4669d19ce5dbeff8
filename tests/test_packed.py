"""What is packed computes the same, to rounding, and refuses what it cannot do any more."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import ldm
from ldm.errors import InputError
from ldm.families import SD1
from ldm.packed import LEAST, LEAST_TILED, Ordered, Tiled, is_packed, pack, packable, parts
from ldm.unet import UNet
from ldm.vae import VAE, VAEConfig
from tests.tiny import error, unit_noise

pytestmark = pytest.mark.skipif(not packable(), reason="this PyTorch has no oneDNN")
BOUND = 3e-6  # of the largest output: sums of some thousand float32 products, a tile's twice as rough


def drawn(module, seed=0):
    """A module with weights such as trained ones: outputs about as large as inputs."""
    for i, p in enumerate(module.parameters()):
        scale = 0.1 if p.dim() == 1 else p[0].numel() ** -0.5
        p.data = unit_noise(seed + i, *p.shape) * scale
    return module.eval().requires_grad_(False)


SIZES = [(2, 8, 8), (1, 64, 40), (2, 7, 9), (3, 1, 1), (1, 2, 1), (1, 33, 64), (5, 4, 4)]


@pytest.mark.parametrize(("b", "h", "w"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_by_tiles(b, h, w, bias):
    module = drawn(nn.Conv2d(LEAST_TILED, LEAST_TILED + 32, 3, padding=1, bias=bias))
    x = unit_noise(7, b, LEAST_TILED, h, w)
    exact = torch.nn.functional.conv2d(
        x.double(), module.weight.double(), module.bias.double() if bias else None, padding=1
    )
    pack(module)
    assert isinstance(module._conv_forward, Tiled)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        before = given.clone()
        assert error(module(given), exact) < BOUND and torch.equal(given, before)
    assert error(module(x.roll(1, 3)), exact) > 0.1 or w == 1  # the bound sees one pixel


OTHERS = {
    "1x1": (64, 96, {"kernel_size": 1}), "strided": (64, 64, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "unpadded": (128, 128, {"kernel_size": 3}), "narrow": (64, 64, {"kernel_size": 3, "padding": 1}),
    "grouped": (128, 128, {"kernel_size": 3, "padding": 1, "groups": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_are_put_in_order(name):
    inputs, outputs, how = OTHERS[name]
    module = drawn(nn.Conv2d(inputs, outputs, **how))
    xs = [unit_noise(i, b, inputs, h, 12) for i, (b, h) in enumerate([(2, 16), (1, 9), (3, 30)])]
    wanted = [module(x) for x in xs]
    pack(module)
    assert isinstance(module._conv_forward, Ordered)
    assert all(error(module(x), y) < BOUND for x, y in zip(xs, wanted, strict=True))


@pytest.mark.parametrize("shape", [(1, 64), (3, 77, 64), (2, 1000, 64)])
def test_linear_modules(shape):
    module, x = drawn(nn.Linear(64, 160)), unit_noise(0, *shape)
    wanted = module(x)
    pack(module)
    assert module.weight is None and error(module(x), wanted) < BOUND


def test_few_channels_stay_as_they_are():
    module = drawn(nn.Sequential(nn.Conv2d(4, 64, 3), nn.Conv2d(64, 3, 3), nn.Linear(LEAST - 1, 64)))
    pack(module)
    assert not is_packed(module) and all(part.weight is not None for part in module)


@pytest.mark.parametrize(("c", "side"), [(64, 200), (64, 16)])
def test_group_norm_of_many_pixels(c, side):
    module = drawn(nn.GroupNorm(32, c))
    x = (unit_noise(0, 2, c, side, side) + 2).contiguous(memory_format=torch.channels_last)
    exact = torch.nn.functional.group_norm(x.double(), 32, module.weight.double(), module.bias.double())
    loose = error(module(x), exact)
    pack(module)
    assert error(module(x), exact) < (loose / 2 if side == 200 else 1e-6)


def test_every_tile_is_in_one_part():
    for images, high, wide in [(2, 32, 32), (1, 256, 256), (5, 2, 2), (3, 1, 700), (7, 8, 8)]:
        seen = [(i, row) for some, rows in parts(images, high, wide) for i in some for row in rows]
        assert sorted(seen) == [(i, row) for i in range(images) for row in range(high)]


def test_a_unet_and_an_autoencoder():
    config = replace(SD1.unet, channels=(128, 256), depth=(1, 1), mid_depth=1, context_dim=64)
    unet, vae = drawn(UNet(config)), drawn(VAE(VAEConfig(channels=(128, 128), res_blocks=1)), 1000)
    x, t, context = unit_noise(0, 2, 4, 14, 10), torch.tensor([3.0, 900.0]), unit_noise(1, 2, 9, 64)
    wanted, picture = unet(x, t, context), vae.decode(x)
    for network in (unet, vae):
        pack(network)
    assert error(unet(x, t, context), wanted) < 1e-5 and error(vae.decode(x), picture) < 1e-5
    assert error(unet(x, t + 20, context), wanted) > 1e-4
    pack(unet)  # again: nothing is left to do
    assert error(unet(x, t, context), wanted) < 1e-5


@pytest.mark.slow
def test_the_unet_of_sd_1():
    unet = drawn(UNet(SD1.unet))
    x, t, context = unit_noise(0, 2, 4, 32, 32), torch.tensor([3.0, 900.0]), unit_noise(1, 2, 77, 768)
    wanted = unet(x, t, context)
    pack(unet)
    assert error(unet(x, t, context), wanted) < 1e-5


# a model


@pytest.fixture(scope="module")
def fast():
    return ldm.load(fast=True)


def test_pictures_are_the_same(fast):
    options = {"seed": 3, "num_inference_steps": 6, "output_type": "np", "progress": False}
    for prompt in ("a red circle", "two blue stars"):
        found, wanted = (pipe(prompt, **options).images for pipe in (fast, ldm.load()))
        assert is_packed(fast.unet) and is_packed(fast.vae)
        assert np.abs(found - wanted).max() < 1e-4


REFUSED = {
    "saving": lambda pipe, path: ldm.save(pipe, path / "a.safetensors"),
    "moving or converting": lambda pipe, path: pipe.to(dtype=torch.float64),
    "a LoRA": lambda pipe, path: pipe.load_lora(path / "none.safetensors"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_weights_is_one_sentence(fast, tmp_path, what):
    with pytest.raises(InputError, match=f"^{what} needs the weights, and these are packed; load without"):
        REFUSED[what](fast, tmp_path)
    assert not list(tmp_path.iterdir())


def test_gradients_are_refused(fast):
    latents = unit_noise(0, 1, 16, 16, 16).requires_grad_()
    with pytest.raises(InputError, match="what is packed has no gradients"):
        fast("a", latents=latents, num_inference_steps=1, output_type="pt", progress=False)


def test_other_types_are_refused():
    with pytest.raises(InputError, match=r"is torch\.float16 on cpu; what is packed is float32 on the CPU"):
        ldm.load(dtype=torch.float16, fast=True)


def test_a_lora_may_be_put_on_before():
    pipe = ldm.load()
    pipe.load_lora("examples/lora/houses.safetensors")
    options = {"seed": 3, "num_inference_steps": 4, "output_type": "np", "progress": False}
    wanted = pipe("a red house", **options).images
    assert np.abs(pipe.pack()("a red house", **options).images - wanted).max() < 1e-4
