"""How the work of a kernel is cut into tiles."""

from typing import NamedTuple

LEAST = 16  # a side of the smallest tile that tensor cores multiply
MOST_RESIDENT = 160  # keys that stay on the chip
FEW = 80  # of them
MOST_TWICE = 2**14  # numbers of keys that stay there for two turns


class Tiles(NamedTuple):
    """Of an attention."""

    rows: int  # queries of a program at once
    keys: int  # and keys; 0: all, and they stay
    warps: int
    stages: int = 2  # blocks of keys that are on their way at once
    turns: int = 1  # how many times `rows` queries a program has, where the keys stay

    @property
    def resident(self) -> bool:
        """Whether the keys stay on the chip."""
        return self.keys == 0


def two_parts(length: int) -> tuple[int, int]:
    """Two powers of two that hold a length, the second smaller or 0; one where that is as good.

    40 -> (32, 16); 64 -> (64, 0); 77 -> (64, 16); 100 -> (128, 0)
    """
    first = max(LEAST, 1 << (length.bit_length() - 1))
    if length <= first:
        return first, 0
    second = max(LEAST, power_of_two(length - first))
    return (first, second) if second < first else (2 * first, 0)


def power_of_two(length: int) -> int:
    """The smallest one that is not smaller."""
    return 1 << (length - 1).bit_length()


def tiles_for(n: int, m: int, d: int) -> Tiles:
    """For n queries and m keys, heads d wide."""
    rows = min(128 if d <= 160 else 64, max(LEAST, power_of_two(n)))
    if m <= MOST_RESIDENT and d <= 160:
        few = d <= 80 and m <= FEW  # else four warps have too few registers, and eight for a second turn
        return Tiles(rows, 0, 4 if few else 8, 1, turns=2 if n > 8 * rows and d * m <= MOST_TWICE else 1)
    if d <= 64:
        return Tiles(rows, 64, 4, 3)
    if d <= 160:
        return Tiles(rows, 64, 8, 2)
    return Tiles(rows, 32, 8, 1)
