"""What a call of a pipeline gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from ldm.image import grid, png_bytes, to_numpy, to_pil
from ldm.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Result(Sequence[Any]):
    """A sequence of images, with everything they came from. Draws itself in a notebook.

    images      list of PIL images; float32 array [b H W 3] or tensor [b 3 H W] in [0, 1]; None for "latent"
    latents     [b c h w], scaled, as the solver left them
    seeds       one int per image
    parameters  what the call was made with: common values, and lists of one prompt and seed per image
    trajectory  every step of the way, where `record=True` asked for it
    """

    images: Any  # which of these a call asked for, no type checker can know
    latents: Tensor
    seeds: list[int]
    parameters: dict[str, Any]
    trajectory: Trajectory | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, i: Any) -> Any:
        return (self.latents if self.images is None else self.images)[i]

    def grid(self) -> Image.Image:
        """All images on one sheet."""
        if isinstance(self.images, list):
            return grid(self.images)
        if self.images is None:
            raise ValueError('output_type "latent" has no images; pass result.latents to pipe.decode')
        array = to_numpy(self.images) if isinstance(self.images, Tensor) else self.images
        return grid(to_pil(array, [{}] * len(array)))

    def _repr_png_(self) -> bytes | None:
        return None if self.images is None else png_bytes(self.grid())

    def __repr__(self) -> str:
        kind = "latents" if self.images is None else "images"
        return f"Result({len(self)} {kind}, latents {list(self.latents.shape)}, seeds {self.seeds})"


def merge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One dict for all images: prompts, negative prompts, seeds and what differs as lists, the rest once."""
    first, *_ = rows
    lists = {"prompt": "prompts", "negative_prompt": "negative_prompts", "seed": "seeds"}
    own = {plural: [row[name] for row in rows] for name, plural in lists.items()}
    rest = {name: [row[name] for row in rows] for name in first if name not in lists}
    return own | {
        name: first[name] if all(v == first[name] for v in all_) else all_ for name, all_ in rest.items()
    }
