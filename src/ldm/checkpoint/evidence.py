"""Widths and depths read off the names and shapes of a file, each by the vote of many tensors.

One tensor with a wrong shape is then outvoted, and named, instead of bending everything else.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

Shapes = Mapping[str, tuple[int, ...]]
Config = TypeVar("Config")


class UntoldError(Exception):
    """There are too few tensors to tell the sizes of a network; `read_or` says what then."""


def read_or(preset: Config, read: Callable[[Shapes, Config], Config], shapes: Shapes) -> Config:
    """What `read` makes of a network's tensors, or the preset if they are too few."""
    try:
        return read(shapes, preset)
    except UntoldError:
        return preset


def vote(shapes: Shapes, pattern: str, axis: int = 0) -> int:
    """The commonest size along an axis of the tensors whose whole name matches. Raises UntoldError."""
    return commonest(
        [shape[axis] for key, shape in shapes.items() if len(shape) > axis and re.fullmatch(pattern, key)]
    )


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers, from 0 without a gap, the group of a pattern takes at the beginning of names."""
    hits = (re.match(pattern, key) for key in shapes)
    found = {int(hit[1]) for hit in hits if hit and len(hit[1]) < 9}
    return next(n for n in range(len(found) + 1) if n not in found)


def commonest(numbers: list[int]) -> int:
    """The commonest of some numbers. Raises UntoldError if there is none."""
    if not numbers:
        raise UntoldError
    return Counter(numbers).most_common(1)[0][0]


def under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
