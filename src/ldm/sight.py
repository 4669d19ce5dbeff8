"""What some networks see beside the latent: each function makes its channels, [b c h w] or [1 c h w]."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.family import Family
from ldm.noise import Draws
from ldm.schedulers import Level


class Sight(NamedTuple):
    """What there is to be seen, and what it takes to bring it to the latent's form."""

    image: Tensor  # [1 3 H W] in [-1, 1]; empty where there is none
    mask: Tensor  # [1 1 H W] in [0, 1], 1 where to repaint
    depth: Tensor  # [1 1 H' W'] of any range
    size: tuple[int, int]  # of the latent
    family: Family
    encode: Callable[[Tensor], Tensor]  # images to latents
    noise: Draws
    level: Level  # of the noise on a small picture

    @property
    def hole(self) -> Tensor:
        """1 where to repaint, else 0."""
        return (self.mask >= 0.5).float()


def inpaint(sight: Sight) -> Tensor:
    """Stable Diffusion's inpainting: the mask, and the picture with a grey hole as a latent. [1 1+c h w]"""
    known = sight.encode(sight.image * (1 - sight.hole))
    return torch.cat([corner(sight), known], dim=1)


def fill(sight: Sight) -> Tensor:
    """LDM's inpainting: the picture with a black hole as a latent, and the mask in -1, 1. [1 c+1 h w]"""
    known = sight.encode((sight.image + 1) * (1 - sight.hole) - 1)
    return torch.cat([known, 2 * corner(sight) - 1], dim=1)


def corner(sight: Sight) -> Tensor:
    """The hole at the latent's size: of every square of pixels the top left one. [1 1 h w]"""
    factor = sight.family.vae.factor
    return sight.hole[..., ::factor, ::factor]


def edit(sight: Sight) -> Tensor:
    """InstructPix2Pix: the picture as a latent that is not scaled (Brooks et al. 2023). [1 c h w]"""
    return sight.encode(sight.image) / sight.family.vae.scale


def depth(sight: Sight) -> Tensor:
    """How far away things are, from -1 to 1. [1 1 h w]"""
    small = F.interpolate(sight.depth, size=sight.size, mode="bicubic", align_corners=False)
    low, high = small.amin(), small.amax()
    return 2 * (small - low) / (high - low) - 1


def upscale(sight: Sight) -> Tensor:
    """The x4 upscaler: the small picture with some noise, which hides what made it small. [b 3 h w]"""
    eps = sight.noise((3, *sight.size))
    return sight.level.alpha * sight.image + sight.level.sigma * eps


def enlarge(sight: Sight) -> Tensor:
    """LDM's super-resolution: the small picture. [1 3 h w]"""
    return sight.image


SEES: dict[str, Callable[[Sight], Tensor]] = {
    "inpaint": inpaint, "fill": fill, "edit": edit, "depth": depth, "upscale": upscale, "enlarge": enlarge,
}  # fmt: skip
