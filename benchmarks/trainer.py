"""A run of training whose steps can be timed, as `ldm train diffusion` has it; in a process of its own too.

    python -m benchmarks.trainer FOLDER BATCH STEPS OUT.json [--cache DIR]
    python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.trainer …

The model is a Stable Diffusion 1 whose widths are divided, the UNet's by 5 and the autoencoder's by 4, and
whose text encoder has a third of its layers. Its weights are random.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import ldm
from ldm.checkpoint.plan import usual_tokenizer
from ldm.families import SD1
from ldm.family import Text
from ldm.pipeline import Pipeline
from ldm.ranks import Ranks, joined
from ldm.training.cache import Texts
from ldm.training.diffusion import Diffusion
from ldm.training.fresh import fresh_text, fresh_vae, seeded
from ldm.training.loop import Run
from ldm.training.recipes import prepared
from ldm.training.rows import rows_of
from ldm.training.session import begun
from ldm.training.settings import Data, DiffusionSettings
from ldm.unet import UNet

(TEXT,) = SD1.texts
FAMILY = replace(
    SD1,
    unet=replace(SD1.unet, channels=(64, 128, 256, 256)),
    vae=replace(SD1.vae, channels=(32, 64, 128, 128)),
    texts=(Text(replace(TEXT.config, layers=4)),),
    size=256,
)
IMAGES = 8


def main() -> None:
    """Take steps, and write the seconds of each; an epoch before them, which fills the cache, is not told."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description="Steps as JSON.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("batch", type=int, help=f"of all processes together; divides {IMAGES}")
    parser.add_argument("steps", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", default="")
    said = parser.parse_args()
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        run = begin(said.folder, said.batch, said.cache, ranks)
        epoch = IMAGES // said.batch
        told = [run.step() for _ in range(epoch + said.steps)][epoch:]
        if ranks.first:
            said.out.write_text(json.dumps([each["seconds"] for each in told]), "utf-8")


def begin(folder: Path, batch: int, cache: str = "", ranks: Ranks = Ranks()) -> Run:
    """The run of `ldm train diffusion` before its first step. cache: of latents and text features."""
    settings = settings_of(folder, batch, cache)
    pipe = prepared(settings, ranks)
    pipe.unet.requires_grad_(True)
    texts = Texts(pipe, Path(cache) / "texts", settings.chunks) if cache else None
    diffusion = Diffusion(pipe, settings, texts)
    return begun(diffusion, pipe, rows_of(settings, pipe, ranks), settings, ranks)


def settings_of(folder: Path, batch: int, cache: str = "") -> DiffusionSettings:
    """What the run is told: as much as the peer's loop does by default, and no more."""
    return DiffusionSettings(
        out=str(folder / "run"), model=str(folder / "model"), data=Data(str(folder / "images"), cache=cache),
        batch=batch, drop=0.0, device="cpu",
    )  # fmt: skip


def write(folder: Path) -> None:
    """The model, and images with captions that are of its size already."""
    with seeded(0):
        unet = UNet(FAMILY.unet)
    texts, tokenizers = zip(
        *((fresh_text(each, 0), usual_tokenizer(each)) for each in FAMILY.texts), strict=True
    )
    ldm.save(Pipeline(FAMILY, unet, fresh_vae(FAMILY, 0), texts, tokenizers), folder / "model", "diffusers")
    images = folder / "images"
    images.mkdir()
    draw = np.random.default_rng(0)
    for i in range(IMAGES):
        coarse = Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8))
        coarse.resize((FAMILY.size, FAMILY.size), Image.Resampling.BICUBIC).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(f"clouds of many colours, picture number {i} of {IMAGES}", "utf-8")


if __name__ == "__main__":
    main()
