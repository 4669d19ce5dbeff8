"""Checkpoint formats as data.

Names are written in one direction only, ours to theirs. A model knows its own keys, so a format is a
finite table: saving reads it left to right, loading right to left.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Source(NamedTuple):
    """Where one of our tensors lives in a foreign file."""

    key: str
    conv: bool = False  # stored as a 1×1 convolution [c c' 1 1] where we keep a linear layer [c c']

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a tensor that has shape `ours` here."""
        return (*ours, 1, 1) if self.conv and len(ours) == 2 else ours

    def load(self, theirs: Tensor) -> Tensor:
        """The tensor as we keep it; a view."""
        return theirs[:, :, 0, 0] if self.conv and theirs.ndim == 4 else theirs

    def save(self, ours: Tensor) -> Tensor:
        """The tensor as they keep it; a view."""
        return ours.reshape(self.shape(tuple(ours.shape)))


class Rule(NamedTuple):
    """Every match of the regular expression `ours` in one of our keys becomes `theirs`."""

    ours: str
    theirs: str
    conv: bool = False


def table(keys: Iterable[str], rules: Iterable[Rule]) -> dict[str, Source]:
    """Our key -> where it lives. Rules apply in order, each to what the ones before it left."""
    out = {}
    rules = list(rules)
    for ours in keys:
        key, conv = ours, False
        for rule in rules:
            key, hits = re.subn(rule.ours, rule.theirs, key)
            conv = conv or bool(hits and rule.conv)
        out[ours] = Source(key, conv)
    return out


def shapes_of(model: torch.nn.Module) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor of a model by key."""
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
