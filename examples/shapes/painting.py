"""The painter: the UNet learns to predict v on latents of scenes, in passes, from what their words say.

    loss = |unet(x_t, t, text) - v|²,     x_t = alpha_t z + sigma_t eps     (`ldm.training.diffusion`)

Each pass is a run of `ldm.training.session` and begins with the averaged weights of the pass before.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from muon import Muon, split
from patches import projection_of
from recipe import Recipe
from scenes import batch_of, batches

from ldm.pipeline import Pipeline
from ldm.ranks import Ranks
from ldm.training.diffusion import Diffusion
from ldm.training.session import begun, followed
from ldm.training.settings import Data, DiffusionSettings, Sheet
from ldm.training.sheets import by_time, draw, place, sheet_path

PROMPTS = (
    "a large red circle in the middle on a white background",
    "a small green star to the left of a large red square on a navy background",
    "a large yellow arrow above a small blue ring on a black background",
    "three small pink hearts on a grey background",
    "a purple crescent, a cyan cross and an orange diamond on beige",
    "a large purple triangle at the top on a brown background",  # of a pair that no training scene shows
    "",
)
LOOKED_AT = 64  # scenes whose loss is measured by time


def settings_of(recipe: Recipe, i: int, run: Path, device: str = "", every: int = 1000) -> DiffusionSettings:
    """What pass i of a run is told, from 1. every: steps between sheets; checkpoints come twice as often."""
    stage = recipe.passes[i - 1]
    return DiffusionSettings(
        out=str(run / f"pass-{i}"), model=recipe.source, seed=recipe.seed_of(10 + i), device=device,
        data=Data(path="scenes drawn as they are needed"),
        sheet=Sheet(every=every, prompts=PROMPTS, images=LOOKED_AT),
        steps=stage.steps, batch=stage.batch, rate=stage.rate, warmup=stage.warmup, schedule="cosine",
        betas=(0.9, 0.99), ema=recipe.ema, save_every=max(1, every // 2),
        times="stratified", power=recipe.power, drop=recipe.drop,
    )  # fmt: skip


def train_painter(
    pipe: Pipeline, recipe: Recipe, i: int, run: Path, ranks: Ranks, every: int = 1000, progress: bool = True
) -> None:
    """Pass i: the UNet of `pipe` goes on learning, and has the averaged weights at the end."""
    settings = settings_of(recipe, i, run, ranks.device.type, every)
    pipe.unet.requires_grad_(True)
    diffusion, projection = Diffusion(pipe, settings), projection_of(pipe.vae)
    rows = batches(settings.seed, settings.batch, projection, ranks)
    muon = recipe.passes[i - 1].muon
    make = partial(Muon, *split(pipe.unet), settings.rate, betas=settings.betas, decay=settings.decay)
    paints = begun(diffusion, pipe, rows, settings, ranks, make if muon else None)
    paints.config = {**paints.config, "recipe": asdict(recipe.passes[i - 1])}
    shown = batch_of(recipe.seed_of(3), range(LOOKED_AT), projection)

    def look(step: int) -> Mapping[str, float]:
        drawn = draw(pipe, settings.sheet, PROMPTS)
        if ranks.first:
            place(sheet_path(settings, step), drawn)
        return by_time(diffusion, shown)

    followed(paints, settings, look, None, progress)
    pipe.unet.requires_grad_(False)
