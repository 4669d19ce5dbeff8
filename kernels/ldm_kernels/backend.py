"""Attention for `ldm.attention_backend("triton")`: Triton's where that is the fastest, else PyTorch's.

Which is the fastest of a shape is measured when the shape is first met on a device, some milliseconds each,
and remembered as long as Python runs; so that no shape is slower than with the best of PyTorch's own.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import triton.testing
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.attention import sdpa
from ldm.errors import DeviceError
from ldm_kernels.attention import forward

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels then run on a CPU, slowly
TYPES = (torch.float16, torch.bfloat16)  # that tensor cores multiply without loss
MOST_WIDTH = 512  # of a head
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def through(kind: SDPBackend) -> Attend:
    """PyTorch's attention by one of its kernels."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kind):
            return sdpa(q, k, v, False)

    return attend


WAYS: dict[str, Attend] = {
    "triton": forward,
    "cudnn": through(SDPBackend.CUDNN_ATTENTION),
    "flash": through(SDPBackend.FLASH_ATTENTION),
    "efficient": through(SDPBackend.EFFICIENT_ATTENTION),
}
chosen: dict[tuple[Any, ...], str] = {}  # what was the fastest of a shape


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q kᵀ / √d) v, as `ldm.attention` defines it; q [b h n d], k and v [b h m d] -> [b h n d]."""
    if causal or not covered(q, k, v):
        return sdpa(q, k, v, causal)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        result: Tensor = Recomputed.apply(q, k, v)
        return result
    return run(q, k, v)


def ready() -> Callable[[Tensor, Tensor, Tensor, bool], Tensor]:
    """`attend`, where it can be used. Raises DeviceError."""
    if not INTERPRETED and not torch.cuda.is_available():
        raise DeviceError("the attention backend 'triton' needs a GPU, and torch finds none; leave it out")
    return attend


def covered(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels know such inputs; PyTorch's attention knows all."""
    kinds = {x.dtype for x in (q, k, v)}
    known = len(kinds) == 1 and (INTERPRETED or (q.is_cuda and kinds <= set(TYPES)))
    shaped = q.dim() == 4 and q.shape[3] <= MOST_WIDTH and 0 not in (*q.shape, *k.shape)
    return known and shaped and all(x.stride(3) == 1 for x in (q, k, v))


def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By the fastest way."""
    return forward(q, k, v) if INTERPRETED else WAYS[fastest(q, k, v)](q, k, v)


def fastest(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The name of the way that is the fastest for such inputs."""
    key = (q.device, q.dtype, q.shape, k.shape[2], q.stride(), k.stride(), v.stride())
    if key not in chosen:
        if torch.cuda.is_current_stream_capturing():  # nothing can be measured now, and nothing is noted
            return "triton"
        seconds = {name: time for name, way in WAYS.items() if (time := milliseconds(way, q, k, v))}
        chosen[key] = min(seconds, key=seconds.__getitem__)
    return chosen[key]


def milliseconds(way: Attend, q: Tensor, k: Tensor, v: Tensor) -> float | None:
    """The median time of a way; None if it does not know such inputs."""
    try:
        time: float = triton.testing.do_bench(lambda: way(q, k, v), warmup=5, rep=20, return_mode="median")
    except RuntimeError:  # how PyTorch says that a kernel of its own is none for these
        return None
    return time


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
