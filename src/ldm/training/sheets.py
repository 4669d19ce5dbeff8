"""What is looked at during a run: pictures of fixed prompts and seeds, and the loss at each time.

    loss(t) = mean |unet(alpha_t z + sigma_t eps, t, c) - target|²  over the same images and noise each time

Both depend on the weights alone, so those of two steps, or of two runs, can be compared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.checks import whole
from ldm.errors import InputError
from ldm.family import Family
from ldm.image import grid, write
from ldm.pipeline import Pipeline
from ldm.request import MOST_IMAGES
from ldm.rows import Prompt, hears_classes
from ldm.training.data import Batch
from ldm.training.diffusion import Diffusion
from ldm.training.losses import ByTime
from ldm.training.places import ready
from ldm.training.rows import in_parts
from ldm.training.settings import Settings, Sheet

BINS = 10  # parts of the schedule
UNHEARD = 4  # pictures of a model that hears no prompts


def prompts_of(family: Family, sheet: Sheet) -> list[Prompt]:
    """The prompts of a sheet as a model of the family hears them. Raises InputError."""
    if classes := hears_classes(family):
        if odd := [prompt for prompt in sheet.prompts if not prompt.isdecimal()]:
            raise InputError(f"sheet.prompts has {odd[0]!r}, but {family.name} draws classes; give numbers")
        most = classes.classes - 1
        return [whole("sheet.prompts", int(prompt), most, least=0) for prompt in sheet.prompts]
    if sheet.prompts and not family.texts:
        raise InputError(f"{family.name} hears no prompts; take sheet.prompts out")
    return list(sheet.prompts) if family.texts else [None] * UNHEARD


def draw(pipe: Pipeline, sheet: Sheet, prompts: Sequence[Prompt], most: int = MOST_IMAGES) -> Image.Image:
    """A picture for each prompt, side by side. most: drawn at once."""
    pictures = []
    for at in range(0, len(prompts), most):
        said: Any = list(prompts[at : at + most])
        pictures += pipe(
            said if pipe.family.texts else None,
            seed=sheet.seed + at,
            num_inference_steps=sheet.steps or None,
            guidance_scale=sheet.guidance if sheet.guidance >= 0 else None,
            num_images_per_prompt=1 if pipe.family.texts else len(said),
            progress=False,
        ).images
    return grid(pictures)


def sheet_path(settings: Settings, step: int) -> Path:
    """Where the sheet of a step lies."""
    return Path(settings.out) / "sheets" / f"step-{step:08}.png"


def place(path: Path, picture: Image.Image) -> None:
    """Write a picture, and the folder it is in. Raises InputError."""
    ready(path.parent)
    write(picture, path)


@torch.no_grad()
def by_time(
    diffusion: Diffusion, batch: Batch, most: int = MOST_IMAGES, bins: int = BINS
) -> dict[str, float]:
    """The mean loss in the middle of each part of the schedule: {"loss_t050": …, "loss_t150": …}.

    most  images that are looked at at once
    """
    schedule, count = diffusion.model.family.schedule, len(batch.names)
    found = ByTime(schedule, bins, diffusion.model.device)
    middles = [schedule.steps * (2 * k + 1) // (2 * bins) for k in range(bins)]
    parts = [range(at, min(at + most, count)) for at in range(0, count, most)]
    for rows, part in zip(parts, in_parts(batch, most), strict=True):
        for middle in middles:
            t = torch.full((len(rows),), middle)
            found.add(t, diffusion.at(part, rows, t))
    names = [f"loss_t{middle:03}" for middle in middles]
    return dict(zip(names, found.means().tolist(), strict=True))
