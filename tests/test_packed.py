"""What is packed computes the same, to rounding, and refuses what it cannot do any more."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ldm
from ldm.errors import InputError
from ldm.families import SD1
from ldm.layers import ResBlock, Upsample, half
from ldm.once import Once
from ldm.packed import LEAST, LEAST_TILED, is_packed, pack, packable
from ldm.unet import UNet
from ldm.unet.blocks import GEGLU
from ldm.vae import VAE, VAEConfig
from ldm.winograd import LEAST_PIXELS, parts, transformed
from tests.tiny import error, uncollected, unit_noise

pytestmark = pytest.mark.skipif(not packable(), reason="this PyTorch has no oneDNN")
BOUND = 3e-6  # of the largest output: sums of some thousand float32 products, a tile's twice as rough


def drawn(module, seed=0):
    """A module with weights such as trained ones: outputs about as large as inputs."""
    for i, p in enumerate(module.parameters()):
        scale = 0.1 if p.dim() == 1 else p[0].numel() ** -0.5
        p.data = unit_noise(seed + i, *p.shape) * scale
    return module.eval().requires_grad_(False)


SIZES = [(2, 8, 8), (1, 64, 40), (2, 7, 9), (3, 1, 1), (1, 2, 1), (1, 33, 64), (5, 16, 16), (1, 15, 35)]


def exactly(module, x):
    """A convolution in float64."""
    bias = None if module.bias is None else module.bias.double()
    return F.conv2d(x.double(), module.weight.double(), bias, module.stride, module.padding, 1, module.groups)


@pytest.mark.parametrize(("b", "h", "w"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lasting", [True, False])
def test_a_convolution_by_tiles(b, h, w, bias, lasting):
    """Where the weight lasts, few pixels are unfolded; else tiles take its place at the first use."""
    module = drawn(nn.Conv2d(LEAST_TILED, LEAST_TILED + 32, 3, padding=1, bias=bias))
    x, many = unit_noise(7, b, LEAST_TILED, h, w), unit_noise(8, 1, LEAST_TILED, 16, 16)
    exact, exact_many = exactly(module, x), exactly(module, many)
    pack(module)
    module.tiles.lasting = lasting
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        before = given.clone()
        assert error(module(given), exact) < BOUND and torch.equal(given, before)
    assert error(module(x.roll(1, 3)), exact) > 0.1 or w == 1  # the bound sees one pixel
    assert (module.tiles.tiled is not None) == (h * w >= LEAST_PIXELS)
    assert module.weight.is_meta == (h * w >= LEAST_PIXELS and not lasting)
    assert error(module(many), exact_many) < BOUND
    assert error(module(x), exact) < BOUND  # also after another size


OTHERS = {
    "1x1": (64, 96, {"kernel_size": 1}), "strided": (64, 64, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "unpadded": (128, 128, {"kernel_size": 3}), "narrow": (64, 64, {"kernel_size": 3, "padding": 1}),
    "grouped": (128, 128, {"kernel_size": 3, "padding": 1, "groups": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_have_channels_last(name):
    inputs, outputs, how = OTHERS[name]
    module = drawn(nn.Conv2d(inputs, outputs, **how))
    xs = [unit_noise(i, b, inputs, h, 12) for i, (b, h) in enumerate([(2, 16), (1, 9), (3, 30)])]
    wanted = [module(x) for x in xs]
    pack(module)
    assert is_packed(module) and not hasattr(module, "tiles")
    assert all(error(module(x), y) < BOUND for x, y in zip(xs, wanted, strict=True))
    assert module(xs[0]).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 64), (3, 77, 64), (2, 1000, 64)])
def test_linear_modules(shape):
    module, x = drawn(nn.Linear(64, 160)), unit_noise(0, *shape)
    wanted = module(x)
    pack(module)
    assert is_packed(module) and error(module(x), wanted) < BOUND


def test_few_channels_stay_as_they_are():
    module = drawn(nn.Sequential(nn.Conv2d(4, 64, 3), nn.Conv2d(64, 3, 3), nn.Linear(LEAST - 1, 64)))
    pack(module)
    assert not is_packed(module)


@pytest.mark.parametrize(("c", "side", "mean"), [(64, 200, 2), (64, 16, 2), (32, 9, 0), (64, 50, 300)])
def test_group_norm(c, side, mean):
    """Many pixels cost no digits, and a mean far from zero only those that the numbers have not got."""
    module = drawn(nn.GroupNorm(32, c))
    x = (unit_noise(0, 2, c, side, side) + mean).contiguous(memory_format=torch.channels_last)
    exact = F.group_norm(x.double(), 32, module.weight.double(), module.bias.double())
    pack(module)
    assert error(module(x), exact) < 1e-6 * max(1, mean / 10)
    assert error(module(x + 0.1 * x.roll(1, 3)), exact) > 1e-3


BLOCKS = {
    "widening": {"dim_out": 256}, "as wide": {"dim_out": 128}, "told": {"dim_out": 128, "time_dim": 64},
    "scaled": {"dim_out": 128, "time_dim": 64, "scale_shift": True},
    "halved": {"dim_out": 128, "time_dim": 64, "resample": half}, "narrow": {"dim_out": 96, "time_dim": 64},
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("size", [(2, 16, 18), (2, 6, 4), (1, 40, 40)])
def test_residual_blocks(name, size):
    block = drawn(ResBlock(128, groups=32, eps=1e-6, **BLOCKS[name]))
    b, h, w = size
    x, time = unit_noise(0, b, 128, h, w), unit_noise(1, b, 64)
    given = (x, time) if block.time else (x,)
    wanted = block(*given)
    pack(block)
    before = x.clone()
    assert error(block(*given), wanted) < BOUND and torch.equal(x, before)
    if block.time:
        assert error(block(x, Once(time)), wanted) < BOUND
        assert error(block(x, time.roll(1, 1)), wanted) > 1e-2


@pytest.mark.parametrize(
    "size", [(1, 8, 8), (2, 5, 9), (1, 40, 33), (3, 1, 1), (1, 1, 3), (1, 64, 1), (2, 1, 20)]
)
@pytest.mark.parametrize("wanted", [None, (1, 0), (0, 1)])
def test_upsampling(size, wanted):
    module, (b, h, w) = drawn(Upsample(128)), size
    x = unit_noise(0, b, 128, h, w)
    to = None if wanted is None else torch.Size((2 * h - wanted[0], 2 * w - wanted[1]))
    exact = module(x, to)
    pack(module)
    assert error(module(x, to), exact) < BOUND
    assert error(module(x, torch.Size((2 * h, 2 * w))), module(x)) == 0
    assert (module.doubling.tiled is not None) == (4 * h * w >= LEAST_PIXELS) and not module.weight.is_meta
    assert error(module(x.roll(1, 3), to), exact) > 0.1 or w == 1


@pytest.mark.parametrize("tokens", [3, 2000])
def test_gates(tokens):
    module, x = drawn(GEGLU(128)), unit_noise(0, 2, tokens, 128)
    exact = module(x)
    pack(module)
    assert error(module(x), exact) < BOUND


def test_every_tile_is_in_one_part():
    for images, high, wide in [(2, 32, 32), (1, 256, 256), (5, 2, 2), (3, 1, 700), (7, 8, 8)]:
        seen = [(i, row) for some, rows in parts(images, high, wide) for i in some for row in rows]
        assert sorted(seen) == [(i, row) for i in range(images) for row in range(high)]


def test_a_unet_and_an_autoencoder():
    config = replace(SD1.unet, channels=(128, 256), depth=(1, 1), mid_depth=1, context_dim=64)
    unet, vae = drawn(UNet(config)), drawn(VAE(VAEConfig(channels=(128, 128), res_blocks=1)), 1000)
    x, t, context = unit_noise(0, 2, 4, 26, 20), torch.tensor([3.0, 900.0]), unit_noise(1, 2, 9, 64)
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
    with pytest.raises(InputError, match=r"^another weight of a LoRA needs the weights"):
        pipe.adapters.weigh("houses", 0.5)
    with pytest.raises(InputError, match=r"^taking a LoRA off needs the weights, and these are packed"):
        pipe.unload_lora()
    assert pipe.additions() == {"lora": {"houses": 1.0}}


def test_a_deep_level_makes_no_tiles_of_small_pictures():
    config = replace(SD1.unet, channels=(128,) * 4, depth=(0,) * 4, mid_depth=0, context_dim=None)
    unet = drawn(UNet(config))
    pack(unet)
    for module in unet.modules():
        if hasattr(module, "tiles"):
            module.tiles.lasting = True
    with torch.no_grad():
        unet(unit_noise(0, 1, 4, 64, 64), torch.tensor([3.0]))  # 8² in the deepest level
    deep = (*unet.down[3:], unet.mid, *unet.up[:1])
    tiled = {name: module.tiles for name, module in unet.named_modules() if hasattr(module, "tiles")}
    for name, module in unet.named_modules():
        if hasattr(module, "doubling"):
            assert module.tiles.tiled is None
            tiled[name] = module.doubling
    inside = {id(module) for part in deep for module in part.modules()}
    names = {name for name, module in unet.named_modules() if id(module) in inside}
    for name, tiles in tiled.items():
        assert (tiles.tiled is None) == (name in names and name != "up.0.up")  # whose picture is of 16²


def test_threads_may_meet_at_the_first_use(monkeypatch):
    """The kernels of tiles are made then, by one of them, and the weight is let go of."""
    made = []

    def slowly(weight, kernel):
        made.append(weight)
        time.sleep(0.05)
        return transformed(weight, kernel)

    monkeypatch.setattr("ldm.winograd.transformed", slowly)
    module = drawn(nn.Conv2d(LEAST_TILED, LEAST_TILED, 3, padding=1))
    x = unit_noise(9, 1, LEAST_TILED, 16, 16)
    exact = exactly(module, x)
    pack(module)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(module, [x] * 8))
    assert len(made) == 1 and module.weight.is_meta
    assert all(error(y, exact) < BOUND for y in found)
    module = drawn(Upsample(LEAST_TILED))
    sizes = [None, torch.Size((31, 32))] * 4
    exact = [module(x, size) for size in sizes]
    pack(module)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(module, [x] * 8, sizes))
    assert len(made) == 3 and all(error(*pair) < BOUND for pair in zip(found, exact, strict=True))


def test_a_refused_model_is_left_as_it_was():
    pipe = ldm.load()
    pipe.vae.half()
    with pytest.raises(InputError, match=r"is torch\.float16 on cpu; .*: load with dtype=torch\.float32"):
        pipe.pack()
    assert not is_packed(pipe.unet) and not is_packed(pipe.vae)


def test_weights_are_not_to_be_learnt():
    for module, x in (
        (nn.Linear(64, 64), unit_noise(0, 3, 64)),
        (nn.Conv2d(64, 64, 3), unit_noise(0, 1, 64, 8, 8)),
    ):
        pack(module)
        with pytest.raises(InputError, match="what is packed has no gradients"):
            module(x)
        with torch.no_grad():
            module(x)


def test_autocast_is_one_sentence_and_breaks_nothing(fast):
    options = {"seed": 3, "num_inference_steps": 2, "output_type": "np", "progress": False}
    pipe = ldm.load(fast=True)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="leave autocast out"):
        pipe("a red circle", **options)
    assert (
        np.abs(pipe("a red circle", **options).images - fast("a red circle", **options).images).max() < 1e-5
    )


@pytest.mark.parametrize("fast", [False, True])
def test_a_pipeline_that_was_called_is_freed_when_it_is_gone(fast):
    """All of it, and at once: nothing waits for Python to look for circles."""
    pipe = ldm.load(fast=fast)
    pipe("a red circle", num_inference_steps=1, progress=False)
    networks = pipe.unet, pipe.vae, *pipe.text_encoders
    parts = [ref(pipe), *(ref(module) for network in networks for module in network.modules())]
    parts += [ref(p) for network in networks for p in network.parameters()]
    assert len(parts) > 500 and pipe.adapters.changes == {}
    with uncollected():
        del pipe, networks
        assert [part() for part in parts if part() is not None] == []


def test_a_copy_draws_by_itself_and_all_say_what_they_are():
    options = {"seed": 3, "num_inference_steps": 2, "output_type": "np", "progress": False}
    pipe = ldm.load(fast=True)
    wanted = pipe("a red circle", **options).images
    assert repr(pipe) == repr(ldm.load())
    again = copy.deepcopy(pipe)
    with torch.no_grad():
        for module in pipe.unet.modules():
            if isinstance(module, nn.Linear):
                module.weight.zero_()
    assert (again("a red circle", **options).images == wanted).all()
    assert (pipe("a red circle", **options).images != wanted).any()
