"""The card of a run: what was trained, on what, for how long, and how well it paints; nothing from memory."""

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from recipe import Recipe, Stage

import ldm
from ldm.checkpoint.files import replacing
from ldm.evaluation.shapes.world import HELD_OUT, SIDE
from ldm.pipeline import Pipeline
from ldm.training.card import duration, mean_loss, read_lines, steps_seconds
from ldm.training.loop import METRICS

Metrics = list[dict[str, Any]]
SOURCES = {"": "nothing", "bundled": "the model in the package"}


def write_card(pipe: Pipeline, recipe: Recipe, run: Path, scores: Mapping[str, Any], world: int) -> Path:
    """Write RUN/card.md, of the metrics of its stages.

    scores  of the judge, as `train.judged` gives them; empty: it was not asked. world: processes
    """
    with replacing(run / "card.md") as file:
        file.write("".join(f"{line}\n" for line in lines(pipe, recipe, run, scores, world)).encode())
    return run / "card.md"


def lines(pipe: Pipeline, recipe: Recipe, run: Path, scores: Mapping[str, Any], world: int) -> Iterator[str]:
    """The card, line by line, in Markdown."""
    yield "# A model of the world of shapes\n"
    yield f"Trained by examples/shapes/train.py of ldm {ldm.__version__} and torch {torch.__version__}, from"
    yield f"{SOURCES.get(recipe.source, recipe.source)}, with {world} × {torch.get_num_threads()} threads"
    yield f"on {pipe.device} ({os.cpu_count()} cores, {platform.machine()}).\n"
    yield "| network | parameters |\n|---|---|"
    for name, network in pipe.named_networks().items():
        yield f"| {name} | {sum(p.numel() for p in network.parameters()):,} |"
    painted = sum(stage.steps * stage.batch for stage in recipe.passes)
    yield f"\nThe painter saw {painted:,} scenes of {SIDE} × {SIDE} pixels, each once, in words of its own;"
    yield f"none has one of {len(HELD_OUT)} pairs of colour and kind that are kept for the judge.\n"
    yield "| stage | optimiser, peak rate | steps | batch | time | loss at first | at last |"
    yield "|---|---|---|---|---|---|---|"
    for name, stage in stages(recipe).items():
        yield row(name, stage, read_lines(run / name / METRICS))
    yield "\nLosses are means of 20 lines of the log; times are about those of the steps alone.\n"
    yield from told(read_lines(run / f"pass-{len(recipe.passes)}" / METRICS))
    yield from table(scores) if scores else ()
    yield "## Settings\n\n| | |\n|---|---|"
    shared = {name: value for name, value in asdict(recipe).items() if not isinstance(value, (dict, tuple))}
    yield from (f"| {name} | {value} |" for name, value in shared.items() if value != "")


def stages(recipe: Recipe) -> dict[str, Stage]:
    """The stages of a recipe by the names of their folders, in the order in which they are trained."""
    passes = {f"pass-{i}": stage for i, stage in enumerate(recipe.passes, 1)}
    return passes if recipe.source else {"reader": recipe.reader, "decoder": recipe.decoder, **passes}


def row(name: str, stage: Stage, metrics: Metrics) -> str:
    """A stage's line of the table."""
    optimiser = "Muon" if stage.muon else "AdamW"
    time = duration(sum(steps_seconds(metrics)))
    done = metrics[-1]["step"] if metrics else 0
    first, last = mean_loss(metrics[:20]), mean_loss(metrics[-20:])
    return f"| {name} | {optimiser}, {stage.rate:g} | {done:,} | {stage.batch} | {time} | {first} | {last} |"


def told(metrics: Metrics) -> Iterator[str]:
    """The loss of the averaged weights at each time, when they were last looked at."""
    looks = [line for line in metrics if any(key.startswith("loss_t") for key in line)]
    if not looks:
        return
    by_time = {key.removeprefix("loss_t"): value for key, value in looks[-1].items() if "loss_t" in key}
    yield "The averaged weights' loss on the same scenes and noise, by time:\n"
    yield f"| t | {' | '.join(key.lstrip('0') for key in by_time)} |\n|---|{'---|' * len(by_time)}"
    yield f"| loss | {' | '.join(f'{value:.4f}' for value in by_time.values())} |\n"


def table(scores: Mapping[str, Any]) -> Iterator[str]:
    """What the judge said, in percent."""
    sets = scores["percent"]
    aspects = list(next(iter(sets.values())))
    yield "## Scores\n"
    yield f"Percent right of {scores['prompts']} prompts of each set, seeds from {scores['seed']} on:\n"
    yield f"| prompts | {' | '.join(aspects)} |\n|---|{'---|' * len(aspects)}"
    for name, found in sets.items():
        yield f"| {name} | {' | '.join(f'{found[aspect]:.1f}' for aspect in aspects)} |"
    yield ""
