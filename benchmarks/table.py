"""What a benchmark found, as rows of a Markdown table, and the document around it."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import ldm

PEERS = ("torch", "diffusers", "transformers", "accelerate", "numpy")


Show = Callable[[float | None], str]  # a figure in words; "" for None


def seconds(value: float | None) -> str:
    """A time in its natural unit."""
    if value is None:
        return ""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def megabytes(value: float | None) -> str:
    """A number of bytes."""
    return "" if value is None else f"{value / 1e6:.0f} MB"


def proportion(value: float | None) -> str:
    """So many times."""
    return "" if value is None else f"{value:.2f}×"


@dataclass(frozen=True)
class Row:
    """One measurement, in seconds if `show` says no other, and what it is held against."""

    what: str
    ours: float | None  # None where only a yes or no is asked
    theirs: float | None = None  # of the peer
    most: float | None = None  # goal: no more than this
    ratio: float | None = None  # goal: at least this many times as fast as the peer
    said: bool | None = None  # the answer, where it is yes or no
    note: str = ""
    show: Show = seconds  # how figures are written

    @property
    def times(self) -> float | None:
        """How many times as fast as the peer; of memory, how many times as much it takes."""
        return self.theirs / self.ours if self.theirs and self.ours else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.said is not None:
            return self.said
        if self.most is not None and self.ours is not None:
            return self.ours <= self.most
        if self.ratio is not None and self.times is not None:
            return self.times >= self.ratio
        return None


COLUMNS = ("what", "ours", "theirs", "theirs / ours", "goal", "met", "note")
WIDTHS = (46, 9, 9, 13, 8, 3, 4)  # characters, so that the table can be read as it grows


def heading() -> str:
    """The first two lines of the table."""
    return cells(COLUMNS) + "\n" + cells(["-" * width for width in WIDTHS])


def line(row: Row) -> str:
    """A row as a line of Markdown."""
    goal = "yes" if row.said is not None else ""
    goal = f"≤ {row.show(row.most)}" if row.most is not None else goal
    goal = f"≥ {row.ratio}×" if row.ratio is not None else goal
    ours = {True: "yes", False: "no", None: row.show(row.ours)}[row.said]
    times = f"{row.times:.2f}×" if row.times else ""
    met = {True: "yes", False: "no", None: ""}[row.met]
    return cells((row.what, ours, row.show(row.theirs), times, goal, met, row.note))


def cells(values: Sequence[str]) -> str:
    """Values between bars, padded to the width of their columns."""
    return "| " + " | ".join(value.ljust(width) for value, width in zip(values, WIDTHS, strict=True)) + " |"


def document(rows: Sequence[Row]) -> str:
    """Machine, versions, date and table, as Markdown."""
    head = f"""\
# Results

Written by `python -m benchmarks --out benchmarks/RESULTS.md`. Contestants take turns in one process (for
imports and loads: in fresh ones); times are medians. `theirs / ours` is how many times as fast as the peer we
are; of memory, how many times as much it takes. Rows of a GPU come of `python -m benchmarks gpu`; where there
are none, none was at hand.

- machine: {processor()}, {torch.get_num_threads()} threads for torch, where not said otherwise
- versions: Python {platform.python_version()}, ldm {ldm.__version__}, {", ".join(map(installed, PEERS))}
- date: {datetime.now(timezone.utc):%Y-%m-%d}
"""
    return "\n".join([head, heading(), *map(line, rows)]) + "\n"


def installed(name: str) -> str:
    """A package and its version."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} not installed"


def processor() -> str:
    """The CPU's model, as the system names it."""
    info = Path("/proc/cpuinfo")
    for text in info.read_text().splitlines() if info.is_file() else ():
        key, _, value = text.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
