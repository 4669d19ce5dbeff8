"""The pictures of a call, and what a family does with them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.checks import inside
from ldm.errors import InputError
from ldm.family import Family
from ldm.image import from_any, mask_from_any
from ldm.layouts import ARRAYS, DEPTHS, TENSORS, laid_out, sides
from ldm.reading import upright_size

NEEDS = {  # what a UNet sees beside the latent, to the arguments it is made of
    "inpaint": ("image", "mask_image"),
    "fill": ("image", "mask_image"),
    "edit": ("image",),
    "upscale": ("image",),
    "enlarge": ("image",),
    "depth": ("depth_map",),
}


class Pictures(NamedTuple):
    """Those of one call: as they are given, or read."""

    image: Any = None  # [1 3 H W] in [-1, 1]
    mask: Any = None  # [1 1 H W] in [0, 1], 1 where to repaint
    depth: Any = None  # [1 1 H W]

    def check(self, family: Family) -> None:
        """Raises InputError for a picture that a family needs and has not got, or that it has no use for."""
        given = {"image": self.image, "mask_image": self.mask, "depth_map": self.depth}
        needed = NEEDS.get(family.beside, ())
        for name in needed:
            if given[name] is None:
                raise InputError(f"{family.name} needs {' and '.join(needed)}; give {name}")
        if self.image is None and self.mask is not None:
            raise InputError("mask_image needs image, the picture to repaint")
        if self.depth is not None and "depth_map" not in needed:
            raise InputError(f"{family.name} does not take depth_map; leave it out")
        if self.mask is not None and family.beside in ("edit", "upscale", "enlarge"):
            raise InputError(f"{family.name} does not take mask_image; leave it out")

    def names(self, latents: Any) -> tuple[str, ...]:
        """The arguments that no file of parameters can hold, of those that are given."""
        given = {"image": self.image, "mask_image": self.mask, "depth_map": self.depth, "latents": latents}
        return tuple(name for name, value in given.items() if value is not None)

    def read(self, family: Family, height: int, width: int) -> "Pictures":
        """As tensors, of the size of the images to be made; small ones of the size they have to be."""
        smaller = family.vae.factor if enlarges(family) else 1
        size = (width // smaller, height // smaller)
        image = None if self.image is None else from_any(self.image, size)
        if isinstance(self.mask, Image.Image):
            check_alike(size_of(self.image) or size, self.mask)
        return Pictures(
            image,
            None if self.mask is None else mask_from_any(self.mask, size),
            None if self.depth is None else depth_from_any(self.depth),
        )

    def to(self, device: torch.device) -> "Pictures":
        """On a device."""
        return Pictures(*(None if x is None else x.to(device) for x in self))


def refuse_sighted(family: Family, done: str) -> None:
    """Raises InputError for a family whose network sees more than a noisy latent."""
    if family.beside or family.unet.labels:
        raise InputError(f"{family.name} sees more than a latent, and is not {done}; use an ordinary model")


def starts_at_image(family: Family) -> bool:
    """Whether a picture that is given is where sampling starts."""
    return family.beside in ("", "depth", "inpaint")


def enlarges(family: Family) -> bool:
    """Whether a picture that is given is a small one to be enlarged."""
    return family.beside in ("upscale", "enlarge")


def grown(family: Family, image: Any, height: int | None, width: int | None) -> tuple[int | None, int | None]:
    """The size of the images to be made: what is asked for, or of a small picture enlarged."""
    own = size_of(image)
    if not enlarges(family) or own is None:
        return height, width
    w, h = own
    factor = family.vae.factor
    return height or h * factor, width or w * factor


def as_it_is(image: Any) -> Tensor:
    """A picture as float32 [1 3 H W] in [-1, 1], of the size that it has. Raises InputError."""
    return from_any(image, size_of(image) or (512, 512))  # the second is only spoken of in an error


def size_of(image: Any) -> tuple[int, int] | None:
    """Width and height of a picture as it is seen; None of what is none. Raises InputError for a bad one."""
    if isinstance(image, Image.Image):
        return upright_size(image, "image")
    return sides(image, ARRAYS if isinstance(image, np.ndarray) else TENSORS)


def check_alike(size: tuple[int, int], mask: Image.Image) -> None:
    """Raises InputError for a mask that is not the picture of `size` larger or smaller, but for a pixel."""
    (w, h), (width, height) = size, upright_size(mask, "mask_image")
    if abs(w * height - h * width) > max(w, h, width, height):
        raise InputError(
            f"mask_image has {width}×{height} pixels and another shape than image with {w}×{h}, so that it "
            "marks something else; cut or resize either"
        )


def depth_from_any(depth: Any) -> Tensor:
    """A depth map as float32 [1 1 H W] on the CPU: an array or tensor [H W], [1 H W] or [1 1 H W].

    Its numbers are real, of any type, size and range: what the network sees of them goes from -1 to 1.
    Raises InputError for anything else, and for values that are not finite or all the same.
    """
    x = laid_out("depth_map", depth, "an array or tensor [H W]", DEPTHS)
    if not inside(x, -1e30, 1e30):
        raise InputError("depth_map has values that are not finite, or beyond 1e30; take them out")
    if x.max() == x.min():
        raise InputError("depth_map is the same everywhere; give one that tells near from far")
    return x.reshape(1, 1, *x.shape[-2:])
