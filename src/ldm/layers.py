"""What the VAE and the UNet are both made of: the residual block, down- and upsampling."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.once import Once, by


def keep(x: Tensor) -> Tensor:
    """x at the size it has."""
    return x


def half(x: Tensor) -> Tensor:
    """Means of 2×2 pixels. [b c h w] -> [b c h/2 w/2]."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Every pixel 2×2 times. [b c h w] -> [b c 2h 2w]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))): the residual block of DDPM (Ho et al. 2020, app. B).

    x [b dim_in h w] -> [b dim_out h w]. With `time_dim` an embedding [b time_dim] of the noise level is
    added between the convolutions; the VAE, which knows no noise, has none.

    scale_shift  norm(h) (1 + scale) + shift instead, both made of the noise level (Dhariwal & Nichol 2021)
    resample     `half` or `double`: what happens to the size of both branches, before the convolutions
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        groups: int,
        eps: float,
        time_dim: int | None = None,
        scale_shift: bool = False,
        resample: Callable[[Tensor], Tensor] = keep,
    ):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.norm1 = nn.GroupNorm(groups, dim_in, eps=eps)
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * dim_out if scale_shift else dim_out) if time_dim else None
        self.norm2 = nn.GroupNorm(groups, dim_out, eps=eps)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        self.skip = nn.Conv2d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | Once | None = None) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = self.normed(h, time)
        h = self.conv2(F.silu(h))
        h += self.skip(self.resample(x))
        return h

    def normed(self, h: Tensor, time: Tensor | Once | None) -> Tensor:
        """The second norm, told the noise level."""
        if self.time is None or time is None:
            return self.norm2(h)
        told = by(self.tell, time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            return self.norm2(h) * (1 + scale) + shift
        h += told
        return self.norm2(h)

    def tell(self, time: Tensor) -> Tensor:
        """What the block hears of the noise level: [b time_dim] -> [b c]."""
        return self.time(F.silu(time))  # type: ignore[misc]


class Downsample(nn.Conv2d):
    """Halves height and width by a 3×3 convolution of stride 2. [b c h w] -> [b c h/2 w/2].

    The UNet pads every side by one (`padding=1`), the VAE only right and bottom (`padding=0`).
    """

    def __init__(self, dim: int, *, padding: int):
        super().__init__(dim, dim, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))
        return super().forward(x)


class Upsample(nn.Conv2d):
    """Twice the height and width: nearest neighbour, then a 3×3 convolution. [b c h w] -> [b c 2h 2w].

    size: another height and width to reach, for a UNet whose skip came from an odd size.
    """

    def __init__(self, dim: int):
        super().__init__(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        *_, h, w = x.shape
        return super().forward(F.interpolate(x, size=size or (2 * h, 2 * w), mode="nearest"))
