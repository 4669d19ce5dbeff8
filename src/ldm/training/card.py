"""The card of a trained model: what it was made from, how, for how long, and how well it does."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import ldm
from ldm.checkpoint.files import replacing
from ldm.errors import InputError
from ldm.model import Model
from ldm.training.changes import fields
from ldm.training.config import plain
from ldm.training.loop import METRICS
from ldm.training.settings import Settings

CARD = "card.md"
SCORES = (
    "scores.json"  # in the run's folder: name -> number, or names of its own; as `ldm eval --json` writes
)


def write_card(settings: Settings, model: Model, images: int = 0) -> Path:
    """Write `card.md` in the run's folder, of its settings, `metrics.jsonl` and `scores.json` if it is there.

    images  that the data had; 0: not told
    Raises InputError for files that are not what they are called.
    """
    folder = Path(settings.out)
    text = "\n".join(
        lines(settings, model, read_lines(folder / METRICS), read_scores(folder / SCORES), images)
    )
    with replacing(folder / CARD) as file:
        file.write(f"{text}\n".encode())
    return folder / CARD


def lines(
    settings: Settings, model: Model, metrics: list[dict[str, Any]], scores: Mapping[str, Any], images: int
) -> Iterator[str]:
    """The card, line by line, in Markdown."""
    family, data = model.family, settings.data
    yield f"# {Path(settings.out).name}\n"
    begun = settings.model or "the model in the package"
    yield f"A model of the family {family.name}, trained by ldm {ldm.__version__}, torch {torch.__version__},"
    yield (
        f"from {begun}"
        + (f", with {', '.join(settings.fresh)} begun anew." if settings.fresh else ".")
        + "\n"
    )
    yield "| | |\n|---|---|"
    for name, network in model.named_networks().items():
        yield f"| {name} | {sum(p.numel() for p in network.parameters()):,} parameters |"
    side = data.size or family.size
    yield f"| data | {data.path}{f', {images:,} images' if images else ''}, {side} pixels |"
    yield f"| predicts | {family.prediction.name} |"
    yield f"| latent scale | {family.vae.scale:g} |"
    if metrics:
        done, seconds = metrics[-1]["step"], sum(steps_seconds(metrics))
        yield f"| steps | {done:,} of {settings.batch} images |"
        yield f"| time in steps | about {duration(seconds)} |"
        first, last = mean_loss(metrics[:20]), mean_loss(metrics[-20:])
        yield f"| loss, the mean of 20 lines | {first} at first, {last} at last |"
        by_time = {k: v for k, v in looked(metrics).items() if k.startswith("loss_t")}
        for name, value in by_time.items():
            yield f"| loss at t = {name.removeprefix('loss_t').lstrip('0') or '0'} | {value:.4g} |"
    if scores:
        yield "\n## Scores\n\n| | |\n|---|---|"
        yield from (f"| {name} | {value} |" for name, value in fields(scores))
    yield "\n## Settings\n\n| | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in fields(plain(settings)) if value != "")


def steps_seconds(metrics: list[dict[str, Any]]) -> Iterator[float]:
    """Seconds of the steps up to each line, taking them to be as long as the one that is told."""
    before = 0
    for line in metrics:
        yield (line["step"] - before) * (line.get("seconds") or 0.0)
        before = line["step"]


def mean_loss(metrics: list[dict[str, Any]]) -> str:
    """The mean of the losses that are finite."""
    found = [line["loss"] for line in metrics if line.get("loss") is not None]
    return f"{fmean(found):.4g}" if found else "none"


def looked(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The last line that tells the loss by time."""
    return next((line for line in reversed(metrics) if any(key.startswith("loss_t") for key in line)), {})


def duration(seconds: float) -> str:
    """A time as one says it."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the metrics. Raises InputError."""
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not what training wrote: {error}; move it") from error


def read_scores(path: Path) -> dict[str, Any]:
    """What was scored. Raises InputError."""
    try:
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no JSON: {error}; move it") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must be an object of names and numbers; move it")
    return found
