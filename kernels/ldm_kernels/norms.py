"""Norms and gates of a UNet in Triton, forward, of tensors whose channels lie side by side (NHWC).

    group_norm   y = (x - mean) / √(var + eps) w + bias  over a group of channels and all pixels; then SiLU
    layer_norm   the same over the channels of each token
    geglu        y = h gelu(gate)

Sums are float32. Variances are put together from those of parts (Chan et al. 1979), so that a mean far from
zero costs no digits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ldm_kernels.tiles import power_of_two

PIXELS = 16  # that a program has at once
MOST_PARTS = 64  # that an image's pixels are cut into
ELEMENTS = 1024  # of a gate that a program has


@triton.jit
def part_moments(x, moments, pixels, channels, share, step_b, step_p, C: tl.constexpr, ROWS: tl.constexpr):
    """Of `share` pixels of an image each channel's mean, and its squares about it. moments [b parts 2 c]."""
    part, b, c = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.arange(0, C)
    mean, squares, seen = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32), 0.0
    first, end = part * share, tl.minimum((part + 1) * share, pixels)
    for at in range(first, end, ROWS):
        rows = at + tl.arange(0, ROWS)
        inside = (rows[:, None] < end) & (c[None, :] < channels)
        place = x + b * step_b + rows[:, None] * step_p + c[None, :]
        y = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        count = tl.minimum(ROWS, end - at).to(tl.float32)
        own = tl.sum(y, 0) / count
        off = tl.where(inside, y - own[None, :], 0.0)
        gap = own - mean
        mean += gap * (count / (seen + count))
        squares += tl.sum(off * off, 0) + gap * gap * (seen * count / (seen + count))
        seen += count
    out = moments + (b * tl.num_programs(0) + part) * 2 * channels + c
    tl.store(out, mean, mask=c < channels)
    tl.store(out + channels, squares, mask=c < channels)


@triton.jit
def group_factors(
    moments, w, bias, factors, pixels, channels, share, parts, eps,
    K: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """y = x factor + shift: both of each channel of a group of WIDTH channels. factors [b 2 c]."""
    group, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p, k = tl.arange(0, PARTS), tl.arange(0, K)
    c = group * WIDTH + k
    count = tl.where(p < parts, tl.minimum(share, pixels - p * share), 0).to(tl.float32)
    there = (p[:, None] < parts) & (k[None, :] < WIDTH)
    place = moments + (b * parts + p[:, None]) * 2 * channels + c[None, :]
    means = tl.load(place, mask=there, other=0.0)
    squares = tl.load(place + channels, mask=there, other=0.0)
    total = tl.sum(count, 0) * WIDTH
    mean = tl.sum(tl.sum(means * count[:, None], 0), 0) / total
    gap = tl.where(there, means - mean, 0.0)
    spread = tl.sum(tl.sum(squares + gap * gap * count[:, None], 0), 0) / total
    own = k < WIDTH
    factor = tl.load(w + c, mask=own, other=0.0).to(tl.float32) / tl.sqrt(spread + eps)
    shift = tl.load(bias + c, mask=own, other=0.0).to(tl.float32) - mean * factor
    out = factors + b * 2 * channels + c
    tl.store(out, factor, mask=own)
    tl.store(out + channels, shift, mask=own)


@triton.jit
def scaled(
    x, y, factors, pixels, channels, step_b, step_p, C: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr
):
    """ROWS pixels of one image, all channels: x factor + shift, and SiLU of that."""
    b, c = tl.program_id(1).to(tl.int64), tl.arange(0, C)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own = c < channels
    factor = tl.load(factors + b * 2 * channels + c, mask=own, other=0.0)
    shift = tl.load(factors + b * 2 * channels + channels + c, mask=own, other=0.0)
    inside = (rows[:, None] < pixels) & own[None, :]
    z = tl.load(x + b * step_b + rows[:, None] * step_p + c[None, :], mask=inside, other=0.0).to(tl.float32)
    z = z * factor[None, :] + shift[None, :]
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    place = y + (b * pixels + rows[:, None]) * channels + c[None, :]
    tl.store(place, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def token_normed(x, y, w, bias, tokens, width, eps, step, C: tl.constexpr, ROWS: tl.constexpr):
    """ROWS tokens, each normed over its channels."""
    rows, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, C)
    inside = (rows[:, None] < tokens) & (c[None, :] < width)
    z = tl.load(x + rows[:, None] * step + c[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(z, 1) / width
    off = tl.where(inside, z - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(off * off, 1) / width + eps)
    own = c < width
    z = off * scale[:, None] * tl.load(w + c, mask=own, other=0.0).to(tl.float32)[None, :]
    z += tl.load(bias + c, mask=own, other=0.0).to(tl.float32)[None, :]
    tl.store(y + rows[:, None] * width + c[None, :], z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gated(x, y, width, COLUMNS: tl.constexpr):
    """One token's h gelu(gate), where x is h and then the gate; gelu is the exact one."""
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    h = tl.load(x + row * 2 * width + c, mask=c < width, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + c, mask=c < width, other=0.0).to(tl.float32)
    out = h * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
    tl.store(y + row * width + c, out.to(y.dtype.element_ty), mask=c < width)


def group_norm(x: Tensor, groups: int, w: Tensor, bias: Tensor, eps: float, silu: bool = False) -> Tensor:
    """GroupNorm, and SiLU of it, of x [b c h w] in channels_last; so is what is returned."""
    b, c, height, width = x.shape
    pixels = height * width
    share = max(PIXELS, triton.cdiv(triton.cdiv(pixels, MOST_PARTS), PIXELS) * PIXELS)
    parts = triton.cdiv(pixels, share)
    step_b, _, _, step_p = x.stride()
    moments = torch.empty(b, parts, 2, c, dtype=torch.float32, device=x.device)
    factors = torch.empty(b, 2, c, dtype=torch.float32, device=x.device)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    block = power_of_two(c)
    per_group = c // groups
    part_moments[(parts, b)](x, moments, pixels, c, share, step_b, step_p, C=block, ROWS=PIXELS)
    group_factors[(groups, b)](
        moments, w, bias, factors, pixels, c, share, parts, eps,
        K=power_of_two(per_group), WIDTH=per_group, PARTS=power_of_two(parts),
    )  # fmt: skip
    grid = (triton.cdiv(pixels, PIXELS), b)
    scaled[grid](x, y, factors, pixels, c, step_b, step_p, C=block, ROWS=PIXELS, SILU=silu)
    return y


def layer_norm(x: Tensor, w: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm of x [… c], contiguous."""
    width = x.shape[-1]
    tokens, block = x.numel() // width, power_of_two(width)
    rows = max(1, 4096 // block)
    y = torch.empty_like(x)
    token_normed[(triton.cdiv(tokens, rows),)](x, y, w, bias, tokens, width, eps, width, C=block, ROWS=rows)
    return y


def geglu(x: Tensor) -> Tensor:
    """h gelu(gate) [… c] of x = h, gate [… 2c], contiguous."""
    width = x.shape[-1] // 2
    y = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    gated[(y.numel() // width, triton.cdiv(width, ELEMENTS))](x, y, width, COLUMNS=ELEMENTS)
    return y
