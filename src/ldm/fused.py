"""The parts of a network on a CPU, with channels last and some rows or tokens at a time (`packed`).

Norms, gates and sums are computed on the rows that a convolution is about to read or has written, so that no
picture is read or written for them alone; x is [b h w c] where a name says pixels, [b c h w] elsewhere.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.layers import ResBlock, Upsample, keep
from ldm.once import Once, by
from ldm.unet.blocks import GEGLU
from ldm.winograd import Rows, linear, unfolded

CACHED, TOKENS = 2**19, 512  # numbers and tokens at once


def untrained(x: Tensor, *weights: Tensor) -> Tensor:
    """x, which nothing is to be learnt of, nor of weights. Raises InputError."""
    if torch.is_grad_enabled() and any(z.requires_grad for z in (x, *weights)):
        raise InputError("what is packed has no gradients; load without fast=True, or use torch.no_grad()")
    return x


def as_pixels(x: Tensor, *weights: Tensor) -> Tensor:
    """[b c h w], `untrained`, -> [b h w c] in the order of memory; nothing moves where channels lie last."""
    return rearrange(untrained(x, *weights), "b c h w -> b h w c").contiguous()


def as_image(x: Tensor) -> Tensor:
    """[b h w c] -> [b c h w]; nothing moves."""
    return rearrange(x, "b h w c -> b c h w")


def convolved(
    module: nn.Conv2d,
    rows: Rows,
    size: tuple[int, ...],
    told: Tensor | None = None,
    skip: Rows | None = None,
) -> Tensor:
    """A convolution of rows of a size (b, h, w), plus told [b c'] and skip -> [b h w c']."""
    if tiles := getattr(module, "tiles", None):
        bias = biases(module) if told is None else biases(module) + told
        out: Tensor = tiles(module, rows, size, bias, skip)
        return out
    whole = (range(size[0]), range(size[1]))
    y = as_pixels(nn.Conv2d._conv_forward(module, as_image(rows(*whole)), module.weight, module.bias))
    y = y if told is None else y.add_(told[:, None, None])
    return y if skip is None else y.add_(skip(*whole))


def biases(module: nn.Conv2d) -> Tensor:
    """What a convolution adds to all pixels [1 c']."""
    return torch.zeros(1, module.out_channels) if module.bias is None else module.bias[None]


def convolution(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `Conv2d._conv_forward`."""
    pixels = as_pixels(x, weight)
    return as_image(convolved(module, lines(pixels), pixels.shape[:3]))


def strided(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3×3 convolution of stride 2 and padding 1, as `Conv2d._conv_forward`."""
    y = unfolded(weight, F.pad(as_pixels(x, weight), (0, 0, 1, 1, 1, 1)), stride=2)
    return as_image(y if bias is None else y.add_(bias))


def lines(x: Tensor) -> Rows:
    """Those of x [b h w c] itself."""
    return lambda images, rows: x[images.start : images.stop, rows.start : rows.stop]


def moments(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """shift and scale [b c] with which GroupNorm of x [b h w c] is shift + scale x.

    Sums are of some pixels at a time, about the mean of the first, and float64 from there on, so that neither
    many pixels nor a mean far from zero cost the moments digits.
    """
    b, h, w, c = x.shape
    pixels = rearrange(x, "b h w c -> b (h w) c")
    pilot = pixels[:, : CACHED // c].mean(1, keepdim=True)
    first = second = torch.zeros(b, c, dtype=torch.float64)
    for some in pixels.split(max(1, CACHED // (b * c)), dim=1):
        off = some - pilot
        first = first + off.sum(1)
        second = second + off.square_().sum(1)
    mean = first / (h * w)
    spread = second / (h * w) - mean.square()
    mean = mean + pilot[:, 0]
    means, spreads = (rearrange(z, "b (g k) -> b g k", g=norm.num_groups) for z in (mean, spread))
    middle = means.mean(2, keepdim=True)
    around = (spreads + (means - middle).square()).mean(2, keepdim=True)
    weight, bias = (
        rearrange(z.double(), "(g k) -> g k", g=norm.num_groups) for z in (norm.weight, norm.bias)
    )
    scale = (around + norm.eps).rsqrt() * weight
    return (bias - middle * scale).flatten(1).float(), scale.flatten(1).float()


def normed(norm: nn.GroupNorm, x: Tensor, silu: bool = True) -> Rows:
    """Rows of silu(norm(x)), or of norm(x); x [b h w c]."""
    shift, scale = (z[:, None, None] for z in moments(norm, x))

    def rows(images: range, some: range) -> Tensor:
        own = slice(images.start, images.stop)
        y = torch.addcmul(shift[own], x[own, some.start : some.stop], scale[own])
        return F.silu(y, inplace=True) if silu else y

    return rows


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """norm(x [b c h w])."""
    pixels = as_pixels(x)
    return as_image(normed(norm, pixels, silu=False)(range(len(pixels)), range(pixels.shape[1])))


def res_block(block: ResBlock, x: Tensor, time: Tensor | Once | None = None) -> Tensor:
    """As `ResBlock.forward`; x [b c h w]."""
    if block.scale_shift or block.resample is not keep:
        return ResBlock.forward(block, x, time)
    x = as_pixels(x, *block.parameters())
    size = x.shape[:3]
    told = None if time is None or block.time is None else by(block.tell, time)
    h = convolved(block.conv1, normed(block.norm1, x), size, told)
    skip = lines(x) if isinstance(block.skip, nn.Identity) else mixed(block.skip, x)
    return as_image(convolved(block.conv2, normed(block.norm2, h), size, skip=skip))


def mixed(module: nn.Conv2d, x: Tensor) -> Rows:
    """Rows of a 1×1 convolution of x [b h w c]."""
    seen = lines(x)
    return lambda images, rows: linear(module.weight.flatten(1), module.bias, seen(images, rows))


def upsample(module: Upsample, x: Tensor, size: torch.Size | None = None) -> Tensor:
    """As `Upsample.forward`: where the size is doubled, no doubled image is written; x [b c h w]."""
    *_, h, w = x.shape
    doubling = getattr(module, "doubling", None)
    if doubling is None or (size is not None and tuple(size) != (2 * h, 2 * w)):
        return Upsample.forward(module, x, size)
    pixels = as_pixels(x, *module.parameters())
    return as_image(doubling(module, lines(pixels), pixels.shape[:3], biases(module), None))


def geglu(module: GEGLU, x: Tensor) -> Tensor:
    """As `GEGLU.forward`, some tokens at a time; x [b n c]."""
    tokens = rearrange(untrained(x), "b n c -> (b n) c")
    out = torch.empty_like(tokens)
    count = max(TOKENS, CACHED // module.down.in_features)
    for some, place in zip(tokens.split(count), out.split(count), strict=True):
        h, gate = module.up(some).chunk(2, dim=-1)
        place.copy_(module.down(h * F.gelu(gate)))
    return out.view_as(x)
