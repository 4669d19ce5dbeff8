"""Scaled dot-product attention, the one place from which every network calls it.

attention(q, k, v) = softmax(q kᵀ / √d) v          (Vaswani et al. 2017, eq. 1)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import DeviceError, InputError
from ldm.once import Once, by

Backend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q kᵀ / √d) v by PyTorch's own kernels. q [b h n d], k and v [b h m d] -> [b h n d]."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


# A ContextVar, so that one thread's choice is not another's.
_backend: ContextVar[Backend] = ContextVar("attention backend")


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q kᵀ / √d) v by the backend in force. q [b h n d], k and v [b h m d] -> [b h n d].

    causal: token i attends to tokens 0..i only.
    """
    return in_force()(q, k, v, causal)


def in_force(otherwise: Backend = sdpa) -> Backend:
    """The backend that this thread's caller has chosen; if there is none, another."""
    return _backend.get(otherwise)


@contextmanager
def attention_backend(backend: Backend | str) -> Iterator[None]:
    """Within the block every network of this thread attends through `backend(q, k, v, causal)`.

    backend  a function; or "triton", this project's kernels where they are the fastest, else PyTorch's; or
             "sdpa", PyTorch's alone, which is the default
    Raises InputError on entry for anything else; DeviceError where Triton or a GPU is missing.
    """
    if not isinstance(backend, str) and not callable(backend):
        raise InputError(f"the attention backend must be a function (q, k, v, causal), not {backend!r}")
    token = _backend.set(named(backend) if isinstance(backend, str) else backend)
    try:
        yield
    finally:
        _backend.reset(token)


def named(name: str) -> Backend:
    """A backend by its name. Raises InputError, DeviceError."""
    if name == "sdpa":
        return sdpa
    if name != "triton":
        raise InputError(f"the attention backend {name!r} is none; give 'triton', 'sdpa' or a function")
    try:
        kernels = import_module("ldm_kernels.backend")  # not before: it takes longer than all of ldm
    except ImportError as error:
        raise DeviceError(
            f"the attention backend 'triton' needs Triton ({error}): pip install 'ldm[triton]'"
        ) from error
    backend: Backend = kernels.ready()
    return backend


class Attention(nn.Module):
    """Multi-head attention of x [b n c] to a context [b m c'], to x itself by default.

    bias: whether q, k and v have one (CLIP's and the VAE's have, the UNet's have not).
    inner: the width of all heads together, `dim` by default.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int | None = None,
        *,
        bias: bool = False,
        causal: bool = False,
        inner: int | None = None,
    ):
        super().__init__()
        self.heads, self.causal = heads, causal
        inner = inner or dim
        self.q = nn.Linear(dim, inner, bias=bias)
        self.k = nn.Linear(context_dim or dim, inner, bias=bias)
        self.v = nn.Linear(context_dim or dim, inner, bias=bias)
        self.out = nn.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor | Once | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            rearrange(y, "b n (h d) -> b h n d", h=self.heads)
            for y in (self.q(x), by(self.k, context), by(self.v, context))
        )
        return self.out(rearrange(attention(q, k, v, causal=self.causal), "b h n d -> b n (h d)"))
