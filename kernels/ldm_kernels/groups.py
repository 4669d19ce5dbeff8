"""GroupNorm in Triton, forward, of images whose channels lie side by side (NHWC), with what stands around it.

    y = silu((z - mean) / √(var + eps) w + bias),   z = x + added      mean and var of a group of channels
    y = silu(((z - mean) / √(var + eps) w + bias) (1 + scale) + shift)      where the noise level says `film`

A small group is one program's. Of a large one the moments of parts come first, then those of all (Chan et al.
1979), so that a mean far from zero costs no digits; what is added to a channel moves its mean alone, and all
that follows the mean is one factor and one shift a channel. Sums are float32.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ldm_kernels.tiles import power_of_two

PIXELS, CHANNELS = 64, 64  # that a program has at once
MOST_PARTS = 256  # that an image's pixels are cut into
MOMENTS = 4096  # of parts and channels that a program has at once
SMALL = 2**15  # numbers of a group that one program has at once
SHARE = 1024  # of these, how many each of its warps has


@triton.jit
def told(y, w, bias, film, channels, c, own, FILM: tl.constexpr):
    """Of normed channels y, a factor and a shift: y factor + shift."""
    factor = tl.load(w + c, mask=own, other=0.0).to(tl.float32) * y
    shift = tl.load(bias + c, mask=own, other=0.0).to(tl.float32)
    if FILM:
        scale = 1.0 + tl.load(film + c, mask=own, other=0.0).to(tl.float32)
        factor = factor * scale
        shift = shift * scale + tl.load(film + channels + c, mask=own, other=0.0).to(tl.float32)
    return factor, shift


@triton.jit
def one_group(
    x, y, w, bias, added, film, pixels, channels, eps, step_b, step_p, step_added, step_film,
    P: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr,
    ADDED: tl.constexpr, FILM: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """All of a group of WIDTH channels of one image."""
    b, k, rows = tl.program_id(1).to(tl.int64), tl.arange(0, K), tl.arange(0, P)
    c, own = tl.program_id(0) * WIDTH + k, k < WIDTH
    inside = (rows[:, None] < pixels) & own[None, :]
    z = tl.load(x + b * step_b + rows[:, None] * step_p + c[None, :], mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        z += tl.load(added + b * step_added + c, mask=own, other=0.0).to(tl.float32)[None, :]
        z = tl.where(inside, z, 0.0)
    count = pixels * WIDTH
    mean = tl.sum(tl.sum(z, 0), 0) / count
    z = tl.where(inside, z - mean, 0.0)
    spread = tl.sum(tl.sum(z * z, 0), 0) / count
    factor, shift = told(1.0 / tl.sqrt(spread + eps), w, bias, film + b * step_film, channels, c, own, FILM)
    z = z * factor[None, :] + shift[None, :]
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    place = y + (b * pixels + rows[:, None]) * channels + c[None, :]
    tl.store(place, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def part_moments(x, moments, pixels, channels, share, step_b, step_p, C: tl.constexpr, ROWS: tl.constexpr):
    """Of `share` pixels of an image each channel's mean, and its squares about it. moments [b parts 2 c]."""
    part, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * C + tl.arange(0, C)
    mean, squares, seen = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32), 0.0
    first, end = part * share, tl.minimum((part + 1) * share, pixels)
    for at in range(first, end, ROWS):
        rows = at + tl.arange(0, ROWS).to(tl.int64)
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
    moments, w, bias, added, film, factors, pixels, channels, share, parts, eps, step_added, step_film,
    K: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, ADDED: tl.constexpr, FILM: tl.constexpr,
):  # fmt: skip
    """y = x factor + shift: both of each channel of a group of WIDTH channels. factors [b 2 c]."""
    group, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p, k = tl.arange(0, PARTS), tl.arange(0, K)
    c, own = group * WIDTH + k, k < WIDTH
    count = tl.where(p < parts, tl.minimum(share, pixels - p * share), 0).to(tl.float32)
    there = (p[:, None] < parts) & own[None, :]
    place = moments + (b * parts + p[:, None]) * 2 * channels + c[None, :]
    means = tl.load(place, mask=there, other=0.0)
    more = tl.zeros([K], tl.float32)
    if ADDED:
        more = tl.load(added + b * step_added + c, mask=own, other=0.0).to(tl.float32)
        means = tl.where(there, means + more[None, :], 0.0)
    squares = tl.load(place + channels, mask=there, other=0.0)
    total = tl.sum(count, 0) * WIDTH
    mean = tl.sum(tl.sum(means * count[:, None], 0), 0) / total
    gap = tl.where(there, means - mean, 0.0)
    spread = tl.sum(tl.sum(squares + gap * gap * count[:, None], 0), 0) / total
    factor, shift = told(1.0 / tl.sqrt(spread + eps), w, bias, film + b * step_film, channels, c, own, FILM)
    out = factors + b * 2 * channels + c
    tl.store(out, factor, mask=own)
    tl.store(out + channels, shift + (more - mean) * factor, mask=own)


@triton.jit
def scaled(
    x, y, factors, pixels, channels, step_b, step_p, C: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr
):
    """ROWS pixels of one image, C channels: x factor + shift, and SiLU of that."""
    b, c = tl.program_id(1).to(tl.int64), tl.program_id(2) * C + tl.arange(0, C)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64)
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


class Cut(NamedTuple):
    """How the pixels of an image are cut into parts."""

    share: int  # pixels of a part, but for the last
    parts: int


def cut(pixels: int, width: int) -> Cut:
    """Of groups of `width` channels: as many parts as one program can put together."""
    most = max(1, min(MOST_PARTS, MOMENTS // power_of_two(width)))
    share = triton.cdiv(triton.cdiv(pixels, most), PIXELS) * PIXELS
    return Cut(share, triton.cdiv(pixels, share))


def warps(pixels: int, width: int) -> int:
    """Of the program that has all of a group; 0 if no one program can."""
    numbers = power_of_two(pixels) * power_of_two(width)
    return 0 if numbers > SMALL else min(16, max(4, numbers // SHARE))


def pixel_step(x: Tensor) -> int | None:
    """Numbers from a pixel of x [b c h w] to the next; None unless channels lie last and none is left out."""
    (_, c, h, w), (_, to_channel, to_row, to_column) = x.shape, x.stride()
    step = to_column if w > 1 else to_row
    return step if (c == 1 or to_channel == 1) and (h == 1 or w == 1 or to_row == w * to_column) else None


def group_norm(
    x: Tensor, groups: int, w: Tensor, bias: Tensor, eps: float, silu: bool = False,
    added: Tensor | None = None, film: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """GroupNorm of x [b c h w], and SiLU of it; what is returned is channels_last, as x had better be.

    added  [b c] or [1 c], to x before
    film   [b 2c], scale and shift of what is normed
    """
    if pixel_step(x) is None:
        x = x.contiguous(memory_format=torch.channels_last)
    (b, c, height, width), step_p = x.shape, pixel_step(x)
    pixels, each, step_b = height * width, c // groups, x.stride(0)
    y = torch.empty(b, height, width, c, dtype=x.dtype, device=x.device).permute(0, 3, 1, 2)
    steps = [0 if z is None or len(z) == 1 else z.stride(0) for z in (added, film)]
    has = {"ADDED": added is not None, "FILM": film is not None}
    more = [w if z is None else z for z in (added, film)]
    shape = {"K": power_of_two(each), "WIDTH": each}
    if count := warps(pixels, each):
        one_group[(groups, b)](
            x, y, w, bias, *more, pixels, c, eps, step_b, step_p, *steps,
            P=power_of_two(pixels), **shape, **has, SILU=silu, num_warps=count,
        )  # fmt: skip
        return y
    share, parts = cut(pixels, each)
    moments = torch.empty(b, parts, 2, c, dtype=torch.float32, device=x.device)
    factors = torch.empty(b, 2, c, dtype=torch.float32, device=x.device)
    blocks, tile = triton.cdiv(c, CHANNELS), {"C": CHANNELS, "ROWS": PIXELS}
    part_moments[(parts, b, blocks)](x, moments, pixels, c, share, step_b, step_p, **tile)
    group_factors[(groups, b)](
        moments, w, bias, *more, factors, pixels, c, share, parts, eps, *steps,
        PARTS=power_of_two(parts), **shape, **has,
    )  # fmt: skip
    grid = (triton.cdiv(pixels, PIXELS), b, blocks)
    scaled[grid](x, y, factors, pixels, c, step_b, step_p, **tile, SILU=silu)
    return y
