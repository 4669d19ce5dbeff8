"""The trained networks as a pipeline, and as the folder that `ldm.load()` reads."""

from dataclasses import replace
from pathlib import Path

import torch
from stages import PREDICTION, SCHEDULE, Parts

import ldm
from ldm.families import SHAPES
from ldm.family import Text
from ldm.pipeline import Pipeline
from ldm.schedulers.spacing import trailing


def as_pipeline(parts: Parts) -> Pipeline:
    """A pipeline that samples with the schedule the networks were trained under."""
    family = replace(
        SHAPES,
        unet=parts.unet.config,
        vae=parts.vae.config,
        texts=(Text(parts.text.config),),
        schedule=SCHEDULE,
        prediction=PREDICTION,
        spacing=trailing,
        set_alpha_to_one=True,
    )
    return Pipeline(family, parts.unet.eval(), parts.vae.eval(), [parts.text.eval()], [parts.tokenizer])


def export(parts: Parts, path: Path) -> None:
    """Write a diffusers folder of float16 safetensors."""
    ldm.save(as_pipeline(parts), path, layout="diffusers", dtype=torch.float16)
