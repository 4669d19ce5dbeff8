"""The trained networks as a pipeline, and as the folder that `ldm.load()` reads."""

from dataclasses import replace
from pathlib import Path

import torch
from stages import PREDICTION, SCHEDULE, Painter

import ldm
from ldm.clip import Tokenizer
from ldm.families import SHAPES
from ldm.pipeline import Pipeline
from ldm.schedulers.spacing import trailing
from ldm.vae import VAE


def as_pipeline(vae: VAE, painter: Painter, tokenizer: Tokenizer) -> Pipeline:
    """A pipeline that samples with the schedule the networks were trained under."""
    family = replace(
        SHAPES,
        unet=painter.unet.config,
        vae=vae.config,
        text=painter.text.config,
        schedule=SCHEDULE,
        prediction=PREDICTION,
        spacing=trailing,
        set_alpha_to_one=True,
    )
    return Pipeline(family, painter.unet.eval(), vae.eval(), [painter.text.eval()], [tokenizer])


def export(vae: VAE, painter: Painter, tokenizer: Tokenizer, path: Path) -> None:
    """Write a diffusers folder of float16 safetensors."""
    ldm.save(as_pipeline(vae, painter, tokenizer), path, layout="diffusers", dtype=torch.float16)
