"""What a call of a pipeline gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.image import Picture, grid, png_bytes, to_numpy, to_pil, to_unit
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


LISTS = {"prompt": "prompts", "negative_prompt": "negative_prompts", "seed": "seeds"}


def presented(images: Tensor, output: str, said: list[dict[str, Any]]) -> Any:
    """Images [b 3 H W] in [-1, 1] in the form that a call asked for, each with its parameters."""
    images = to_unit(images)
    if output == "pt":
        return images
    return to_pil(to_numpy(images), said) if output == "pil" else to_numpy(images)


def marked(result: Result, **extra: Any) -> Result:
    """A result that tells more of how it was made."""
    said = [row | extra for row in parted(result.parameters, len(result))]
    images = result.images
    if isinstance(images, list):
        images = [Picture.of(np.asarray(image), row) for image, row in zip(images, said, strict=True)]
    return replace(result, images=images, parameters=merge(said))


def changed(result: Result, images: Tensor, output: str, **extra: Any) -> Result:
    """A result with other images, [b 3 H W] in [-1, 1], that tells what made them so."""
    said = [row | extra for row in parted(result.parameters, len(result))]
    return replace(result, images=presented(images, output, said), parameters=merge(said))


def joined(results: Sequence[Result]) -> Result:
    """Several results of calls that differ in their images alone, as one; without trajectories."""
    first, *_ = results
    images: Any = [image for result in results for image in result]
    if isinstance(first.images, Tensor):
        images = torch.stack(images)
    elif isinstance(first.images, np.ndarray):
        images = np.stack(images)
    return Result(
        None if first.images is None else images,
        torch.cat([result.latents for result in results]),
        [seed for result in results for seed in result.seeds],
        merge([row for result in results for row in parted(result.parameters, len(result))]),
    )


def merge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One dict for all images: prompts, negative prompts, seeds and what differs as lists, the rest once."""
    first, *_ = rows
    own = {plural: [row[name] for row in rows] for name, plural in LISTS.items()}
    rest = {name: [row[name] for row in rows] for name in first if name not in LISTS}
    return own | {
        name: first[name] if all(value == first[name] for value in values) else values
        for name, values in rest.items()
    }


def parted(parameters: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """A dict for each of some images: what `merge` has made one of."""
    singular = {plural: name for name, plural in LISTS.items()}
    return [
        {
            singular.get(name, name): value[i] if isinstance(value, list) else value
            for name, value in parameters.items()
        }
        for i in range(count)
    ]
