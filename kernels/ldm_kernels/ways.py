"""What there are kernels for besides attention, each as a contest with PyTorch (see `choice`)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_kernels.choice import Contest
from ldm_kernels.groups import group_norm
from ldm_kernels.norms import geglu, joined, layer_norm


def plain_group_norm(
    x: Tensor, groups: int, w: Tensor, bias: Tensor, eps: float, silu: bool = False,
    added: Tensor | None = None, film: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`group_norm` by PyTorch."""
    h = F.group_norm(x if added is None else x + added[:, :, None, None], groups, w, bias, eps)
    if film is not None:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return (F.silu(h) if silu else h).contiguous(memory_format=torch.channels_last)


def plain_layer_norm(x: Tensor, w: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`layer_norm` by PyTorch."""
    return F.layer_norm(x, w.shape, w, bias, eps)


def plain_geglu(x: Tensor) -> Tensor:
    """`geglu` by PyTorch."""
    h, gate = x.chunk(2, dim=-1)
    return h * F.gelu(gate)


def plain_joined(x: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """`joined` by PyTorch."""
    return x + z + bias[:, None, None]


norm_images = Contest("a norm of images", {"triton": group_norm}, plain_group_norm)
norm_tokens = Contest("a norm of tokens", {"triton": layer_norm}, plain_layer_norm)
gate = Contest("a gate", {"triton": geglu}, plain_geglu)
join = Contest("a sum", {"triton": joined}, plain_joined)
