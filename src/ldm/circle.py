"""The way from one point to another on the great circle: between two noises there is noise."""

from collections.abc import Sequence

import torch
from torch import Tensor


def slerp(a: Tensor, b: Tensor, share: float, dim: int | None = None) -> Tensor:
    """The point at a share of the way from a to b (Shoemake 1985, sec. 3.3); lengths go along.

    a, b  of one shape; with dim, vectors along that axis, each on a circle of its own
    Shares of 0 and 1 give a and b, bit for bit; where a and b lie on one line, the way is straight.
    """
    if share in (0, 1):
        return b if share else a
    axes = tuple(range(a.ndim)) if dim is None else (dim,)
    x, y = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (a, b))
    long_x, long_y = (torch.linalg.vector_norm(v, dim=axes, keepdim=True) for v in (x, y))
    units = [v / long.clamp_min(1e-30) for v, long in ((x, long_x), (y, long_y))]
    angle = torch.arccos((units[0] * units[1]).sum(axes, keepdim=True).clamp(-1, 1))
    flat = angle.sin() < 1e-4
    whole = torch.where(flat, 1.0, angle.sin())
    way = (torch.sin((1 - share) * angle) * units[0] + torch.sin(share * angle) * units[1]) / whole
    return torch.where(flat, torch.lerp(x, y, share), way * torch.lerp(long_x, long_y, share)).to(a.dtype)


def slerp_rows(a: Tensor, b: Tensor, shares: Sequence[float], dim: int | None = None) -> Tensor:
    """slerp of row i by shares[i]; dim counts without the rows. a, b [b ...]"""
    return torch.stack([slerp(x, y, share, dim) for x, y, share in zip(a, b, shares, strict=True)])
