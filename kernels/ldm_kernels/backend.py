"""Attention for `ldm.attention_backend("triton")`: Triton's where that is the fastest, else PyTorch's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.attention import sdpa
from ldm.errors import DeviceError
from ldm_kernels import choice
from ldm_kernels.attention import forward
from ldm_kernels.choice import Contest

TYPES = (torch.float16, torch.bfloat16)  # that tensor cores multiply without loss
MOST_WIDTH = 512  # of a head
SCORES = 2**28  # bytes of scores that may be written down at once
Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
aten = torch.ops.aten


# PyTorch's kernels by their own names: `sdpa_kernel` would switch the others off in all threads


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By cuDNN."""
    out: Tensor = aten._scaled_dot_product_cudnn_attention(q, k, v, None, False)[0]
    return out


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By FlashAttention-2."""
    out: Tensor = aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return out


def efficient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By the kernels of xFormers."""
    out: Tensor = aten._scaled_dot_product_efficient_attention(q, k, v, None, False)[0]
    return out


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As PyTorch chooses, of so many queries at once that even scores written down take SCORES bytes."""
    a_row = 4 * q.shape[:-2].numel() * k.shape[-2]
    parts = [sdpa(part, k, v, False) for part in q.split(max(1, SCORES // max(1, a_row)), dim=-2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


run = Contest("attention", {"triton": forward, "cudnn": cudnn, "flash": flash, "efficient": efficient}, plain)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q kᵀ / √d) v, as `ldm.attention` defines it; q [b h n d], k and v [b h m d] -> [b h n d]."""
    if causal:
        return sdpa(q, k, v, causal)
    if not covered(q, k, v):
        return plain(q, k, v)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        result: Tensor = Recomputed.apply(q, k, v)
        return result
    return run(q, k, v)


def ready() -> Attend:
    """`attend`, where it can be used. Raises DeviceError."""
    if not choice.INTERPRETED and not torch.cuda.is_available():
        raise DeviceError("the attention backend 'triton' needs a GPU, and torch finds none; leave it out")
    return attend


def covered(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels know such inputs; PyTorch's attention knows all."""
    kinds = {x.dtype for x in (q, k, v)}
    known = len(kinds) == 1 and (choice.INTERPRETED or (q.is_cuda and kinds <= set(TYPES)))
    shaped = q.dim() == 4 and q.shape[3] <= MOST_WIDTH and 0 not in (*q.shape, *k.shape)
    return known and shaped and all(x.stride(3) == 1 for x in (q, k, v))


class Recomputed(torch.autograd.Function):
    """Forward by the fastest way; backward through PyTorch's attention, which is computed again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return run(q, k, v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        given = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = sdpa(*given, False)
        return torch.autograd.grad(out, given, grad)
