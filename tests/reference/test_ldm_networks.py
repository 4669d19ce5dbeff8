"""What shapes do not tell of the networks of the latent diffusion paper, against formulas written here.

Each comes with what it would be if it were got wrong. What surrounds the networks is in test_ldm_formulas.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import ldm
from ldm.checkpoint import plan
from ldm.clip import BERT, BERTConfig, WordPiece
from ldm.layers import Downsample, ResBlock
from ldm.unet.blocks import Transformer
from ldm.unet.embeddings import sinusoid
from tests.reduced import REDUCED, make
from tests.reference.test_ldm_formulas import alpha_bar, ddim, told
from tests.tiny import error, hooked, randomise, unit_noise

BOUND = 2e-6  # of float32, through a few layers
Resample = Callable[[Tensor], Tensor]
LDM = [name for name in REDUCED if name.startswith("ldm-")]


def group_norm(x: Tensor, norm: nn.GroupNorm, eps: float) -> Tensor:
    """Wu & He 2018, eq. 1 to 3, with 32 groups."""
    h = rearrange(x, "b (g c) h w -> b g (c h w)", g=32)
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
    h = h.reshape(x.shape)
    return h * norm.weight[:, None, None] + norm.bias[:, None, None]


def attend(x: Tensor, context: Tensor, layer: nn.Module, heads: int) -> Tensor:
    """Vaswani et al. 2017, eq. 1, for each of the heads."""
    q, k, v = (
        F.linear(x, layer.q.weight),
        F.linear(context, layer.k.weight),
        F.linear(context, layer.v.weight),
    )
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return layer.out((weights @ v).transpose(1, 2).flatten(2))


# Norms


def usual_eps(parent: nn.Module, part: str) -> float:
    return 1e-6 if part == "vae" or isinstance(parent, Transformer) else 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", LDM)
def test_epsilons_of_norms(name: str):
    """They count where the variance is small."""
    with torch.device("meta"):
        built = {part: build() for part, build in plan.networks(REDUCED[name]).items()}
    count = 0
    for part in ("unet", "vae"):
        for path, norm in built[part].named_modules():
            if isinstance(norm, nn.GroupNorm):
                norm.to_empty(device="cpu")
                norm.reset_parameters()
                randomise(norm)
                x = 0.01 * unit_noise(0, 1, norm.num_channels, 4, 4)
                eps = usual_eps(built[part].get_submodule(path.rpartition(".")[0]), part)
                assert error(norm(x), group_norm(x, norm, eps)) <= BOUND
                assert error(norm(x), group_norm(x, norm, 1.1e-5 - eps)) > 30 * BOUND
                count += 1
    assert count > 20
    layers = [m for network in built.values() for m in network.modules() if isinstance(m, nn.LayerNorm)]
    assert {layer.eps for layer in layers} <= {1e-5}


# Halving and doubling


def halved(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def corners(x: Tensor) -> Tensor:
    return x[..., ::2, ::2]


def smooth(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear")


def nothing(x: Tensor) -> Tensor:
    return x


def resampled(block: ResBlock, x: Tensor, time: Tensor, how: Resample, skip: Resample, place: int) -> Tensor:
    """Dhariwal & Nichol 2021, app. A.

    place: the size changes before the norm, before the first convolution, or after it.
    """
    steps = [how if place == i else nothing for i in range(3)]
    h = F.silu(group_norm(steps[0](x), block.norm1, 1e-5))
    h = steps[2](F.conv2d(steps[1](h), block.conv1.weight, block.conv1.bias, padding=1))
    told = block.time(F.silu(time))[..., None, None]
    if len(block.time.bias) == x.shape[1]:
        h = group_norm(h + told, block.norm2, 1e-5)
    else:
        scale, shift = told.split(x.shape[1], 1)
        h = group_norm(h, block.norm2, 1e-5) * (1 + scale) + shift
    return skip(x) + F.conv2d(F.silu(h), block.conv2.weight, block.conv2.bias, padding=1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ldm-churches256", "ldm-inpaint"])
@pytest.mark.parametrize(
    ("way", "how", "other", "places"),  # a norm and SiLU of what is repeated are repeated themselves
    [("down", halved, corners, (0, 2)), ("up", doubled, smooth, (2,))],
)
def test_residual_blocks_that_resample(name: str, way: str, how: Resample, other: Resample, places):
    with torch.device("meta"):
        unet = plan.networks(REDUCED[name])["unet"]()
    level = unet.down[0] if way == "down" else unet.up[0]
    block = getattr(level, way).to_empty(device="cpu")
    for layer in (block.norm1, block.conv1, block.time, block.norm2, block.conv2):
        layer.reset_parameters()
    randomise(block)
    assert not list(block.skip.parameters())
    x, time = unit_noise(1, 2, block.conv1.in_channels, 8, 12), unit_noise(2, 2, block.time.in_features)
    found = block(x, time)
    assert error(found, resampled(block, x, time, how, how, 1)) <= BOUND
    for place in places:
        assert error(found, resampled(block, x, time, how, how, place)) > 30 * BOUND
    assert error(found, resampled(block, x, time, other, how, 1)) > 30 * BOUND
    assert error(found, resampled(block, x, time, how, other, 1)) > 30 * BOUND


def strided(conv: nn.Conv2d, x: Tensor, before: int) -> Tensor:
    """Every second 3 x 3 window of x, which has so many zeros before its first row and column."""
    windows = F.pad(x, (before, 1, before, 1)).unfold(2, 3, 2).unfold(3, 3, 2)
    return torch.einsum("bchwij,ocij->bohw", windows, conv.weight) + conv.bias[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize(("part", "before"), [("unet", 1), ("vae", 0)])
def test_zeros_around_what_is_halved(part: str, before: int):
    with torch.device("meta"):
        network = plan.networks(REDUCED["ldm-celeba256"])[part]()
    found = [module for module in network.modules() if isinstance(module, Downsample)]
    assert len(found) == len(network.config.channels) - 1
    for conv in found:
        conv.to_empty(device="cpu").reset_parameters()
        randomise(conv)
        x = unit_noise(0, 1, conv.in_channels, 8, 12)
        assert error(conv(x), strided(conv, x, before)) <= BOUND
        assert error(conv(x), strided(conv, x, 1 - before)) > 30 * BOUND


# The text encoder

SMALL = BERTConfig(width=40, layers=3, head_dim=6)  # 48 wide inside


def bert(
    network: BERT, ids: Tensor, *, heads: int = 8, act: Callable = F.gelu, pads: bool = True,
    before: bool = True, after: bool = True,
) -> Tensor:  # fmt: skip
    """A transformer that norms before each half of a layer, and at the end; every token sees every other."""
    x = network.tokens.weight[ids] + network.positions.weight[: ids.shape[1]]
    for block in network.blocks:
        seen = slice(None) if pads else ids[0] != 0
        h = F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias) if before else x
        x = x + attend(h, h[:, seen], block.attn, heads)
        x = x if before else F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias)
        h = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias) if before else x
        x = x + block.fc2(act(block.fc1(h)))
        x = x if before else F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias)
    return F.layer_norm(x, x.shape[-1:], network.norm.weight, network.norm.bias) if after else x


def quick(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


@torch.no_grad()
def test_the_text_encoder():
    network, ids = randomise(BERT(SMALL)), WordPiece.bert()(["a café"])
    assert ids[0].tolist() == [101, 1037, 7668, 102] + [0] * 73  # [CLS] a cafe [SEP]
    assert torch.equal(ids, WordPiece.bert()(["A CAFE\u0301"]))
    found = network(ids)
    assert error(found, bert(network, ids)) <= BOUND
    wrong: list[dict] = [
        {"heads": 1}, {"act": quick}, {"act": tanh}, {"pads": False}, {"before": False}, {"after": False},
    ]  # fmt: skip
    for options in wrong:
        assert error(found, bert(network, ids, **options)) > 30 * BOUND, options


def test_the_text_encoder_is_narrower_inside():
    with torch.device("meta"):
        state = BERT().state_dict()
    assert state["blocks.31.attn.q.weight"].shape == (8 * 64, 1280) and "blocks.0.attn.q.bias" not in state
    assert state["blocks.31.attn.out.weight"].shape == (1280, 8 * 64) and "blocks.0.attn.out.bias" in state
    assert state["blocks.31.fc1.weight"].shape == (4 * 1280, 1280)  # twice as many for a gate


# Times


@torch.no_grad()
def test_frequencies_are_of_float32():
    """`timestep_embedding` of the original code; exact frequencies would be others at late times."""

    def formula(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
        freqs = torch.exp(-math.log(10_000) * torch.arange(0, dim // 2, dtype=dtype) / (dim // 2))
        angles = t.to(dtype)[:, None] * freqs[None]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)

    t, bound = torch.tensor([981.0, 521.0, 1.0]), 1e-7
    for dim in (160, 192, 224, 256, 320):
        found = sinusoid(t, dim)
        assert error(found, formula(t, dim, torch.float32)) <= bound
        assert error(found, formula(t, dim, torch.float64)) > 30 * bound
        assert error(found, formula(t, dim, torch.float32).roll(dim // 2, -1)) > 30 * bound  # sines first


# The x4 upscaler


@pytest.fixture(scope="module")
def upscaler() -> ldm.Pipeline:
    return make("sd-x4-upscaler")


STEPS, SEED, GUIDANCE, SIDE = 4, 5, 3.0, 16
RUN_BOUND = 5e-5  # through guided steps, that amplify differences


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 20])
def test_a_run_of_the_upscaler(upscaler, level: int):
    """Salimans & Ho 2022, app. D: eps = sigma x + alpha v, here at each step of DDIM."""
    image, z = unit_noise(1, 1, 3, SIDE, SIDE).clamp(-1, 1), unit_noise(2, 1, 4, SIDE, SIDE)
    bar = alpha_bar(0.0001, 0.02)
    drawn = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED))[None]
    noisy = bar[level] ** 0.5 * image + (1 - bar[level]) ** 0.5 * drawn
    context, empty = upscaler.condition(["a hat"]).context, upscaler.condition([""]).context

    def latents(seen=noisy, unseen=noisy, label=level, unlabel=level, v=True) -> Tensor:
        def eps(x: Tensor, t: int) -> Tensor:
            branches = ((empty, unseen, unlabel), (context, seen, label))
            out_u, out_c = (
                upscaler.unet(torch.cat([x, map_], 1), told(x, t), words, label=torch.tensor([k]))
                for words, map_, k in branches
            )
            out = out_u + GUIDANCE * (out_c - out_u)
            return (1 - bar[t]) ** 0.5 * x + bar[t] ** 0.5 * out if v else out

        return ddim(eps, z, bar, STEPS)

    found = upscaler(
        "a hat", image=image, latents=z, seed=SEED, noise_level=level, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, output_type="latent", progress=False,
    ).latents  # fmt: skip
    assert error(found, latents()) <= RUN_BOUND
    wrong: list[dict] = [
        {"seen": image, "unseen": image}, {"v": False}, {"unseen": torch.zeros_like(noisy)},
        {"label": 0, "unlabel": 0}, {"unlabel": 0},
    ]  # fmt: skip
    for options in wrong if level else wrong[:1]:
        assert error(found, latents(**options)) > 30 * RUN_BOUND, options.keys()


@torch.no_grad()
def test_the_noise_of_the_small_picture_is_added_to_the_time(upscaler):
    unet, table = upscaler.unet, upscaler.unet.label.weight
    x, context, t, label = unit_noise(0, 1, 7, SIDE, SIDE), unit_noise(1, 1, 77, 64), 501, torch.tensor([20])
    found = unet(x, told(x, t), context, label=label)
    with hooked(unet.label, lambda module, args, out: torch.zeros_like(out)):
        without = unet(x, told(x, t), context, label=label)
        with hooked(unet.time, lambda module, args, out: out + table[20]):
            added = unet(x, told(x, t), context, label=label)
        with hooked(unet.time, lambda module, args, out: out * table[20]):
            other = unet(x, told(x, t), context, label=label)
    assert error(found, added) <= BOUND
    assert error(found, without) > 30 * BOUND and error(found, other) > 30 * BOUND


@torch.no_grad()
def test_the_first_attention_of_the_finer_levels_sees_the_text(upscaler):
    """Of levels 1 and 2; level 3 and the middle have the same shapes as level 2, and see themselves."""

    def formula(block: nn.Module, x: Tensor, crossing: bool) -> Tensor:
        def norm(y: Tensor, layer: nn.LayerNorm) -> Tensor:
            return F.layer_norm(y, y.shape[-1:], layer.weight, layer.bias)

        h = norm(x, block.norm_self)
        x = x + attend(h, context if crossing else h, block.self_attn, 8)
        x = x + attend(norm(x, block.norm_cross), context, block.cross_attn, 8)
        h, gate = block.ff.up(norm(x, block.norm_ff)).chunk(2, -1)
        return x + block.ff.down(h * F.gelu(gate))

    unet, context = upscaler.unet, unit_noise(1, 2, 9, upscaler.unet.config.context_dim)
    levels = [(unet.down[i].attn, i) for i in (1, 2, 3)] + [(unet.up[3 - i].attn, i) for i in (1, 2, 3)]
    for attns, i in [*levels, ([unet.mid.attn], 3)]:
        for attn in attns:
            block = attn.blocks[0]
            x = unit_noise(0, 2, 12, block.norm_self.normalized_shape[0])
            assert error(block(x, context), formula(block, x, i < 3)) <= BOUND
            if x.shape[-1] == context.shape[-1]:
                assert error(block(x, context), formula(block, x, i == 3)) > 30 * BOUND
            else:
                assert block.self_attn.k.in_features == context.shape[-1]
    assert {attn.blocks[0].norm_self.normalized_shape[0] for attn in unet.down[2].attn} == {context.shape[-1]}
