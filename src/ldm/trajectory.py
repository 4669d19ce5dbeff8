"""What a recorded call went through, to be looked at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.checks import one_of, whole
from ldm.image import grid, png_bytes, to_numpy, to_pil, to_unit
from ldm.motion import animate
from ldm.walk import Moment


class Trajectory(Sequence[Moment]):
    """The steps of a call in order, each with level, x, x0 and eps. Draws itself in a notebook.

    decode  latents [b c h w] -> images [b 3 H W] in [-1, 1]
    """

    def __init__(self, moments: Sequence[Moment], decode: Callable[[Tensor], Tensor]):
        self.moments, self.decode = list(moments), decode

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, i: Any) -> Any:
        return self.moments[i]

    def __repr__(self) -> str:
        levels = [moment.level.t for moment in self.moments]
        return f"Trajectory({len(self)} steps, t from {levels[0]:g} to {levels[-1]:g})"

    @torch.no_grad()
    def images(self, what: str = "x0", row: int = 0) -> list[Image.Image]:
        """Decoded pictures of one image of the batch, a PIL image a step. what: "x0", "x" or "eps"."""
        one_of("what", what, ("x0", "x", "eps"))
        whole("row", row, len(self.moments[0].x) - 1, least=0)
        latents = torch.stack([getattr(moment, what)[row] for moment in self.moments])
        pictures = to_numpy(to_unit(self.decode(latents)))
        return list(to_pil(pictures, [{}] * len(pictures)))

    def sheet(self, what: str = "x0", row: int = 0) -> Image.Image:
        """All steps on one sheet, row by row."""
        return grid(self.images(what, row))

    def save(self, path: str | Path, what: str = "x0", row: int = 0, *, seconds: float = 0.15) -> None:
        """A moving picture, .gif or .png (APNG), that rests on its last step. Raises InputError."""
        animate(self.images(what, row), path, seconds=seconds, rest=8)

    def _repr_png_(self) -> bytes:
        return png_bytes(self.sheet())
