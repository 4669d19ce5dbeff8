"""Checkpoints of a training run: each is there whole and verified, or not at all.

A save writes a hidden folder, reads it back, and renames it; only then may the oldest go. So a run that is
killed anywhere leaves its last checkpoint or the next one. Only one run at a time may save into a folder.
"""

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ldm
from ldm.checkpoint.files import File
from ldm.checkpoint.header import NAMES
from ldm.checks import plain, shown, whole
from ldm.errors import CheckpointError, InputError, NumericError
from ldm.training.places import absolute, discard, filling, listed, make, place_of, step_of, tidy, writing
from ldm.training.sealed import GROUP, STATE, WEIGHTS, Groups, is_whole, reading, seal, verified
from ldm.training.states import flatten, restored

log = logging.getLogger("ldm")

MOST_STEPS = 10**15


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a checkpoint that is whole."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]  # by group and name; on the CPU
    facts: dict[str, Any]  # as they were given to `save`
    versions: dict[str, str]  # of what wrote it


def save(folder: str | Path, step: int, tensors: Groups, facts: Mapping[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint and return its folder. One of the same step is replaced.

    folder   of the run; made if need be
    tensors  by group (weights, ema, optimiser, …), each of which becomes a file, and name
    facts    all else: the config, the position in the data, what flattened states have beside tensors; of
             numbers, texts, None, lists, tuples and dicts
    keep     how many checkpoints stay, the new one among them; of the older, those that hold other files
             than ours are neither counted nor removed
    Raises InputError if it cannot be written or a whole checkpoint of a later step is there, NumericError
    for what is not finite, CheckpointError if it reads back otherwise; the others are then still there.
    """
    step, keep = whole("step", step, MOST_STEPS, least=0), whole("keep", keep, 10**9)
    check_tensors(tensors, step)
    inside, json_facts = flatten(facts, "facts")
    if inside:
        raise InputError(f"{next(iter(inside))} is a tensor; give it among the tensors")
    folder = absolute("folder", folder)
    with writing(folder):
        make(folder)
        tidy(folder)
        check_free(folder, step)
        with filling(place_of(folder, step)) as new:
            seal(new, step, tensors, json_facts, versions())
        ours = [path for path in listed(folder) if step_of(path) <= step and is_ours(path)]
        for path in ours[keep:]:
            discard(path)
    return place_of(folder, step)


def latest(folder: str | Path) -> Checkpoint:
    """The newest whole checkpoint of a run; a damaged one is passed over with a warning that names it.

    Raises CheckpointError if there is none, InputError if the folder cannot be read.
    """
    paths = listed(folder)
    for path in paths:
        try:
            found = load(path)
            if found.step != step_of(path):
                raise CheckpointError(f"{path} holds step {found.step}; give it the name of that")
            return found
        except CheckpointError as error:
            log.warning("%s is passed over: %s", path, error)
    if paths:
        raise CheckpointError(
            f"{folder} has no whole checkpoint: each of {', '.join(path.name for path in paths)} is damaged; "
            "begin the run anew in another folder"
        )
    raise CheckpointError(f"{folder} has no checkpoint; begin the run, or give the folder of another")


def load(path: str | Path) -> Checkpoint:
    """A checkpoint from its folder, whatever that is called. Raises CheckpointError unless it is whole."""
    path = absolute("path", path)
    state = verified(path)
    tensors = {}
    with reading(path):
        for name in state["files"]:
            file = File.open(path / name)
            tensors[name.removesuffix(WEIGHTS)] = {key: file.read(key) for key in file.entries}
    return Checkpoint(path, state["step"], tensors, restored({}, state["facts"]), state["versions"])


def check_tensors(tensors: Groups, step: int) -> None:
    """Raises InputError for what a file cannot hold, NumericError for what is not finite, by name."""
    for group, named in tensors.items():
        if not isinstance(group, str) or not GROUP.fullmatch(group):
            raise InputError(
                f"a group of tensors is named by a-z, 0-9, _ and -, not {shown(group)}; rename it"
            )
        for name, value in named.items():
            if not isinstance(name, str) or name == "__metadata__":
                raise InputError(f"{group}: a tensor is named by a text, not {shown(name)}; rename it")
            if not (isinstance(value, Tensor) and plain(value) and value.dtype in NAMES):
                raise InputError(
                    f"{group}: {name} must be a dense tensor of a type of safetensors, not {shown(value)}; "
                    "convert it"
                )
            if count := not_finite(value.detach()):
                raise NumericError(
                    f"{group}: {name} has {count} values that are not finite at step {step}, so nothing was "
                    "saved; go on from the last checkpoint with a smaller learning rate"
                )


def not_finite(x: Tensor) -> int:
    """How many values are not."""
    x = x.float() if x.dtype.itemsize == 1 else x  # of float8 torch does not tell
    return int((~x.isfinite()).sum())


def check_free(folder: Path, step: int) -> None:
    """Raises InputError for foreign files at the place, and if another run has come further here."""
    place = place_of(folder, step)
    if place.exists() and not is_ours(place):
        raise InputError(f"{place} is in the way and holds what no checkpoint does; move it elsewhere")
    for path in listed(folder):
        if step_of(path) > step and is_whole(path):
            raise InputError(
                f"{path} is of a later step than {step}; save into another folder, or remove the later ones"
            )


def is_ours(path: Path) -> bool:
    """Whether a folder holds nothing but what a save writes."""
    return path.is_dir() and all(file.name == STATE or file.suffix == WEIGHTS for file in path.iterdir())


def versions() -> dict[str, str]:
    """Of what writes a checkpoint."""
    numeric = {"torch": str(torch.__version__), "numpy": np.__version__}
    return {"ldm": ldm.__version__, **numeric, "python": platform.python_version()}
