"""Runs of `ldm train` that take a second or two: a very small model, a handful of pictures, settings."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ldm
from ldm.clip import CLIPConfig
from ldm.errors import LdmError
from ldm.family import Family, Text
from ldm.training.checkpoints import latest
from ldm.training.config import made
from ldm.training.recipes import train_diffusion
from ldm.training.settings import DiffusionSettings
from ldm.unet import UNetConfig
from ldm.vae import VAEConfig
from tests import tiny
from tests.training.albums import album

SMALL = replace(
    tiny.TINY,
    unet=UNetConfig(channels=(8, 16), depth=(0, 1), res_blocks=1, context_dim=16, heads=2, groups=8),
    vae=VAEConfig(channels=(8, 8), res_blocks=1, groups=8),
    texts=(Text(CLIPConfig(width=16, layers=2, heads=2, hidden=32, vocab=714, length=20)),),
    steps=2,
)


def frozen(pipe: ldm.Pipeline) -> ldm.Pipeline:
    """As `ldm.load` gives it."""
    for network in pipe.networks():
        network.eval().requires_grad_(False)
    return pipe


def place(folder: Path, family: Family = SMALL, pictures: int = 8) -> Path:
    """A folder with `model`, which is small, pictures in `album`, and those without captions in `alone`."""
    ldm.save(tiny.make(family), folder / "model", layout="diffusers")
    album(folder / "album", pictures)
    (album(folder / "alone", pictures) / "metadata.jsonl").unlink()
    return folder


def told(folder: Path, out: Path, kind: type = DiffusionSettings, **more: Any) -> Any:
    """Settings of a run there; nested ones as dicts."""
    data = {"path": str(folder / "album"), "size": tiny.PNG_SIDE, **more.pop("data", {})}
    usual = {"out": str(out), "model": str(folder / "model"), "steps": 4, "batch": 4, "rate": 1e-3}
    usual |= {"device": "cpu", "ema": 0.9, "log_every": 1}
    return made(kind, {**usual, **more, "data": data}, "the test")


def words(settings: Any) -> list[str]:
    """Settings as `key=value` words."""
    from ldm.commands.train import shown

    return [line.replace(" = ", "=", 1) for line in shown(settings).splitlines()]


def train(settings: DiffusionSettings, **options: Any) -> list[Path]:
    return train_diffusion(settings, progress=False, **options)


class StoppedError(Exception):
    """In place of a kill."""


def train_until(step: int, settings: DiffusionSettings) -> None:
    """A run that is left after a step was logged."""

    def leave(done: int, _: Mapping[str, float]) -> None:
        if done == step:
            raise StoppedError

    try:
        train(settings, watch=leave)
    except StoppedError:
        return
    raise AssertionError(f"step {step} never came")


def content(out: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint."""
    return {f"{group}.{name}": x for group, named in latest(out).tensors.items() for name, x in named.items()}


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of the metrics."""
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text("utf-8").splitlines()]


def numbers(out: Path) -> list[dict[str, Any]]:
    """The lines without what time tells."""
    return [{k: v for k, v in line.items() if "second" not in k} for line in metrics(out)]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in metrics(out)]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """By name, of those that have one; they are then gone."""
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


def finite(named: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in named.values())


def is_sentence(error: LdmError | str) -> bool:
    """Whether it says on one line what is the matter."""
    text = str(error)
    return "\n" not in text.strip() and 15 < len(text) < 600 and "Traceback" not in text
