"""Arrays and tensors in: order of axes, size and range. What could be meant in two ways is refused."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.checks import Shape, fits, floats, plain, shown
from ldm.errors import InputError
from ldm.reading import MOST_PIXELS

ARRAYS = {  # layouts, to what makes the first of them; "": right as it is
    "H W 3": "",
    "H W": "give np.stack([{}] * 3, -1)",
    "H W 1": "give {}.repeat(3, -1)",
    "H W 4": "give {}[..., :3]",
    "3 H W": "give {}.transpose(1, 2, 0)",
    "b H W 3": "give {}[0]",
    "b 3 H W": "give {}[0].transpose(1, 2, 0)",
}
TENSORS = {
    "3 H W": "",
    "1 3 H W": "",
    "H W": "give {}.expand(3, -1, -1)",
    "1 H W": "give {}.expand(3, -1, -1)",
    "4 H W": "give {}[:3]",
    "H W 3": "give {}.permute(2, 0, 1)",
    "b 3 H W": "give {}[0]",
    "b H W 3": "give {}[0].permute(2, 0, 1)",
}
DEPTHS = {
    "H W": "",
    "1 H W": "",
    "1 1 H W": "",
    "H W 1": "give {}[..., 0]",
    "H W 3": "give {}[..., 0]",
    "H W 4": "give {}[..., 0]",
    "b H W": "give {}[0]",
}
MASKS = {
    "H W": "",
    "1 H W": "",
    "1 1 H W": "",
    "H W 1": "",
    "H W 3": "give {}[..., 0]",
    "H W 4": "give {}[..., 0]",
    "b H W": "give {}[0]",
    "b 1 H W": "give {}[0]",
    "b 3 H W": "give {}[0, 0]",
    "b H W 1": "give {}[0]",
}
GIVE = "give one"
WAYS = [  # what is no array, to what makes it one
    ((str, os.PathLike), "open it with PIL.Image.open"),
    ((bytes, bytearray, memoryview), "open it with PIL.Image.open(io.BytesIO(…))"),
    ((list, tuple), "give one, or np.asarray(…) of its numbers"),
    ((Image.Image,), "give its numbers, np.asarray(…)"),
    ((np.ndarray, Tensor), "make it plain, of float32"),
]


def laid_out(
    name: str, value: Any, wanted: str, layouts: Mapping[str, str], size: tuple[int, int] | None = None
) -> Tensor:
    """An array or tensor in a right layout, and of `size` (width, height) if one is given, as float32 on the
    CPU. Raises InputError, before anything is converted.
    """
    own = sides(value, layouts)
    if own is None:
        ways = [way for layout, way in layouts.items() if plain(value) and fits(value.shape, shape(layout))]
        ways += [way for kinds, way in WAYS if isinstance(value, kinds)]
        raise InputError(f"{name} must be {wanted}, not {shown(value)}; {(*ways, GIVE)[0].format(name)}")
    (w, h), (width, height) = own, size or own
    if own != (width, height):
        raise InputError(
            f"{name} has {w}×{h} pixels, but must have {width}×{height}; resize it, or make it a PIL image, "
            "which is resized"
        )
    if w * h > MOST_PIXELS:
        raise InputError(f"{name} has {w}×{h} pixels, more than {MOST_PIXELS} in all; make it smaller first")
    return floats(value).cpu()


def sides(value: Any, layouts: Mapping[str, str]) -> tuple[int, int] | None:
    """Width and height of an array or tensor in a right layout; None of anything else."""
    for layout, way in layouts.items():
        if not way and plain(value) and fits(value.shape, shape(layout)):
            found = dict(zip(layout.split(), value.shape, strict=True))
            return found["W"], found["H"]
    return None


def shape(layout: str) -> Shape:
    """ "H W 3" -> (None, None, 3)."""
    return tuple(int(word) if word.isdecimal() else None for word in layout.split())


def within(name: str, x: Tensor, least: float, large: str, small: str, off: float = 0.001) -> Tensor:
    """x with values from `least` to 1, of which it may miss by `off`. Raises InputError.

    large, small  what to do with others
    """
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"{name} has values that are not finite; take them out")
    low, high = float(x.min()), float(x.max())
    if low < least - off or high > 1 + off:
        remedy = small if low < least - off else large
        raise InputError(f"{name} has values outside [{least}, 1], from {low:.4g} to {high:.4g}; {remedy}")
    return x.clamp(least, 1)
