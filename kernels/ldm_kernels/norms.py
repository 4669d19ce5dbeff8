"""Norms, gates and sums of a UNet in Triton, forward, of tensors whose channels lie side by side.

    layer_norm   y = (x - mean) / √(var + eps) w + bias  over the channels of each token
    geglu        y = h gelu(gate)
    joined       y = x + z + bias, where a residual block's branches meet

Sums are float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ldm_kernels.tiles import power_of_two

ELEMENTS = 1024  # of a gate or a sum that a program has
TOKENS = 4096  # numbers of tokens that a program has


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
def gated(x, y, count, width, COUNT: tl.constexpr):
    """COUNT numbers of h gelu(gate), where a token of x is h and then the gate; gelu is the exact one."""
    first = tl.program_id(0).to(tl.int64) * COUNT
    c = (first % width).to(tl.int32) + tl.arange(0, COUNT)
    row, c, inside = first // width + c // width, c % width, first + tl.arange(0, COUNT) < count
    h = tl.load(x + row * 2 * width + c, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + c, mask=inside, other=0.0).to(tl.float32)
    out = h * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
    tl.store(y + first + tl.arange(0, COUNT), out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def summed(x, z, bias, y, count, channels, COUNT: tl.constexpr):
    """COUNT numbers of x + z + bias, where the channels are the last axis."""
    first = tl.program_id(0).to(tl.int64) * COUNT
    at, c = first + tl.arange(0, COUNT), ((first % channels).to(tl.int32) + tl.arange(0, COUNT)) % channels
    inside = at < count
    out = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    out += tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
    out += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


def layer_norm(x: Tensor, w: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm of x [… c]."""
    x, width = x.contiguous(), x.shape[-1]
    tokens, block = x.numel() // width, power_of_two(width)
    rows = max(1, TOKENS // block)
    y = torch.empty_like(x)
    token_normed[(triton.cdiv(tokens, rows),)](x, y, w, bias, tokens, width, eps, width, C=block, ROWS=rows)
    return y


def geglu(x: Tensor) -> Tensor:
    """h gelu(gate) [… c] of x = h, gate [… 2c]."""
    x, width = x.contiguous(), x.shape[-1] // 2
    y = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    gated[(triton.cdiv(y.numel(), ELEMENTS),)](x, y, y.numel(), width, COUNT=ELEMENTS)
    return y


def joined(x: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """x + z + bias [c] of x and z [b c h w], channels_last."""
    x, z = (part.contiguous(memory_format=torch.channels_last) for part in (x, z))
    b, c, h, w = x.shape
    y = torch.empty(b, h, w, c, dtype=x.dtype, device=x.device).permute(0, 3, 1, 2)
    summed[(triton.cdiv(y.numel(), ELEMENTS),)](x, z, bias, y, y.numel(), c, COUNT=ELEMENTS)
    return y
