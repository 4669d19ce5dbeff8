"""Checkpoint formats as data.

Names are written in one direction only, ours to theirs. A model knows its own keys, so a format is a
finite table: saving reads it left to right, loading right to left.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Heads = Callable[[int], int]  # channels -> attention heads


def one(width: int) -> int:
    """One head, whatever the width."""
    return 1


class Form(NamedTuple):
    """How a tensor is kept in a foreign file."""

    axes: int = 0  # a linear layer [c c'] is a convolution there, with so many axes of size 1 more
    part: int | None = None  # it is this third of the rows of a fused query, key and value
    heads: Heads = one  # each head has its own query, key and value rows there, one head after another
    turned: bool = False  # it is transposed

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a tensor that has shape `ours` here; of all thirds together."""
        theirs = ours[::-1] if self.turned else ours
        theirs = theirs if self.part is None else (3 * theirs[0], *theirs[1:])
        return theirs + (1,) * self.axes if len(ours) == 2 else theirs

    def load(self, theirs: Tensor) -> Tensor:
        """The tensor as we keep it; a view where that can be."""
        ours = theirs.flatten(1) if self.axes and theirs.ndim > 2 else theirs
        ours = ours.T if self.turned else ours
        if self.part is None:
            return ours
        heads = self.heads(len(ours) // 3)
        return ours.unflatten(0, (heads, 3, -1))[:, self.part].flatten(0, 1)

    def save(self, ours: Tensor) -> Tensor:
        """The tensor as they keep it, of a fused one this third; a view."""
        theirs = ours.T if self.turned else ours
        return theirs.reshape(*theirs.shape, *(1,) * self.axes) if ours.ndim == 2 else theirs


PLAIN = Form()


class Source(NamedTuple):
    """Where one of our tensors lives in a foreign file."""

    key: str
    form: Form = PLAIN


class Rule(NamedTuple):
    """Every match of the regular expression `ours` in one of our keys becomes `theirs`."""

    ours: str
    theirs: str
    form: Form = PLAIN


CONV = Form(axes=2)  # 1×1


def fused(ours: str, theirs: str, axes: int = 0, heads: Heads = one) -> list[Rule]:
    """Rules for q, k and v that are one tensor; `ours` has {} for the letter."""
    return [Rule(ours.format(letter), theirs, Form(axes, part, heads)) for part, letter in enumerate("qkv")]


def table(keys: Iterable[str], rules: Iterable[Rule]) -> dict[str, Source]:
    """Our key -> where it lives. Rules apply in order, each to what the ones before it left."""
    ours = list(keys)
    if not ours:
        return {}
    names, forms = list(ours), [PLAIN] * len(ours)
    for rule in rules:
        if rule.form is not PLAIN:
            hits = re.compile(rule.ours).search
            forms = [rule.form if hits(name) else form for name, form in zip(names, forms, strict=True)]
        # all names at once, a line each, which is many times faster than one by one
        names = re.sub(rule.ours, rule.theirs, "\n".join(names), flags=re.MULTILINE).split("\n")
    sources = map(Source, names, forms)
    return dict(zip(ours, sources, strict=True))


def assemble(state: Mapping[str, Tensor], sources: Mapping[str, Source]) -> dict[str, Tensor]:
    """Our tensors under their names and in their forms, the thirds of fused ones put together."""
    thirds: dict[str, dict[int, Tensor]] = {}
    out: dict[str, Tensor] = {}
    for ours, (key, form) in sources.items():
        tensor = form.save(state[ours])
        if form.part is None:
            out[key] = tensor
            continue
        parts = thirds.setdefault(key, {})
        parts[form.part] = tensor.unflatten(0, (form.heads(len(tensor)), -1))
        if len(parts) == 3:
            out[key] = torch.stack([parts[i] for i in range(3)], dim=1).flatten(0, 2)
    return out
