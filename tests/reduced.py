"""Every family with small networks whose sizes their tensors tell, as a file or folder of them would."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ldm
from ldm.clip import BERTConfig, ClassConfig, CLIPConfig
from ldm.families import FAMILIES
from ldm.family import NUMBERS, Family, Text
from tests import tiny


def small_text(text: Text) -> Text:
    """A text encoder of two or three layers; the number of heads stays."""
    config = text.config
    if isinstance(config, CLIPConfig):
        width = 4 * config.heads
        projection = width if config.projection else None
        config = replace(config, width=width, layers=3, hidden=2 * width, projection=projection)
    elif isinstance(config, BERTConfig):
        config = replace(config, width=48, layers=2, head_dim=6)
    elif isinstance(config, ClassConfig):
        config = replace(config, width=40)
    return replace(text, config=config)


def reduce(family: Family) -> Family:
    """The family with narrow and shallow networks; levels, heads and all that tells them apart stay."""
    texts = tuple(small_text(text) for text in family.texts)
    step = family.unet.head_dim or 32
    levels = len(family.unet.channels)
    unet = replace(
        family.unet,
        channels=tuple(step if i < levels // 2 else 2 * step for i in range(levels)),
        depth=tuple(min(depth, 2) for depth in family.unet.depth),
        mid_depth=min(family.unet.mid_depth, 2),
        context_dim=sum(text.config.width for text in texts) or None,
    )
    if family.vector:
        unet = replace(unet, vector_dim=texts[-1].pooled + 256 * NUMBERS[family.vector])
    vae = replace(
        family.vae,
        channels=tuple(32 if i < 2 else 64 for i in range(len(family.vae.channels))),
        res_blocks=1,
        codes=family.vae.codes and 24,
    )
    small = replace(family, unet=unet, vae=vae, texts=texts, steps=min(family.steps, 4))
    side = 2**levels  # of the latent; its deepest is 2 × 2, as a group of two numbers would be ±1 by chance
    return replace(small, size=max(side * vae.factor, small.unit))


REDUCED = {name: reduce(family) for name, family in FAMILIES.items() if name != "shapes"}


FEW = ("sd2-v", "sdxl", "sd1-inpaint", "ldm-text2img", "ldm-cin256", "ldm-churches256")  # of each kind one


def each(names: Iterable[str]) -> list[Any]:
    """Families as parameters of a test: in the default run one of each kind, in the slow one all."""
    return [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in names]


def make(name: str, seed: int = 0) -> ldm.Pipeline:
    """A small model of a family with random weights and the official vocabulary."""
    return tiny.make(REDUCED[name], seed, ldm.clip.Tokenizer.openai().merges)


def saved(name: str, path: Path) -> Path:
    """It as a file without metadata, as official ones are."""
    ldm.save(make(name), path)
    tiny.bare(path)
    return path
