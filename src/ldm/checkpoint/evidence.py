"""Widths and depths read off the names and shapes of a file, each by the vote of many tensors.

One tensor with a wrong shape is then outvoted, and named, instead of bending everything else.
"""

import re
from collections import Counter
from collections.abc import Mapping

from ldm.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


def vote(shapes: Shapes, pattern: str, axis: int = 0) -> int:
    """The commonest size along an axis of the tensors whose whole name matches.

    Raises CheckpointError where there is none.
    """
    sizes = Counter(
        shape[axis] for key, shape in shapes.items() if re.fullmatch(pattern, key) and len(shape) > axis
    )
    if not sizes:
        name = pattern.replace("\\.", ".")
        raise CheckpointError(f"there is no tensor like {name}, from which the size of the network is read")
    return sizes.most_common(1)[0][0]


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers, from 0 without a gap, the group of a pattern takes at the beginning of names."""
    hits = (re.match(pattern, key) for key in shapes)
    found = {int(hit[1]) for hit in hits if hit}
    return next(n for n in range(len(found) + 1) if n not in found)


def commonest(numbers: list[int]) -> int:
    """The commonest of some numbers, 0 of none."""
    return Counter(numbers).most_common(1)[0][0] if numbers else 0


def under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
