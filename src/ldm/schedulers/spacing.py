"""Which levels a sampler visits: `(schedule, steps, end) -> path`, noisiest first, the end included.

A path is a tuple of steps + 1 Levels. Image to image is `path[k:]`; a hand-over between two models is
`path[:k+1]` and `path[k:]`. Steps are whole numbers from 1 to `schedule.steps`.
"""

from collections.abc import Callable, Iterable
from math import log

import numpy as np

from ldm.schedulers.forward import CLEAN, Level, Schedule

Path = tuple[Level, ...]
Spacing = Callable[[Schedule, int, Level], Path]


def leading(schedule: Schedule, steps: int, end: Level = CLEAN, offset: int = 1) -> Path:
    """t = offset, offset + k, offset + 2k, … with k = T // steps (Song et al. 2021; Stable Diffusion: 1).

    The noisiest level, T - 1, is left out: a known flaw of the original code (Lin et al. 2024, table 2).
    """
    stride = schedule.steps // steps
    offset = min(offset, schedule.steps - 1 - (steps - 1) * stride)  # where all are visited, there is no room
    return along(schedule, (np.arange(steps) * stride + offset)[::-1], end)


def from_zero(schedule: Schedule, steps: int, end: Level = CLEAN) -> Path:
    """t = 0, k, 2k, … with k = T // steps: `leading` as diffusers does it where no steps_offset is given."""
    return leading(schedule, steps, end, offset=0)


def uniform(schedule: Schedule, steps: int, end: Level = CLEAN) -> Path:
    """t = 1, 1 + k, 1 + 2k, … up to T, with k = T // steps, as the code of Rombach et al. (2022) counts.

    Where `steps` does not divide T these are more than `steps`: 7 gives 8.
    """
    times = np.arange(0, schedule.steps, schedule.steps // steps) + 1
    return along(schedule, times[times < schedule.steps][::-1], end)


def trailing(schedule: Schedule, steps: int, end: Level = CLEAN) -> Path:
    """t = T - 1, T - 1 - T/steps, …: from the noisiest level (Lin et al. 2024, sec. 3.3)."""
    times = np.round(np.arange(schedule.steps, 0, -schedule.steps / steps)) - 1
    return along(schedule, times[:steps], end)


def linspace(schedule: Schedule, steps: int, end: Level = CLEAN) -> Path:
    """`steps` equal strides from T - 1 to 0, both visited; not rounded to whole t."""
    return along(schedule, np.linspace(schedule.steps - 1, 0, steps), end)


def karras(schedule: Schedule, steps: int, end: Level = CLEAN, rho: float = 7.0) -> Path:
    """Ratios sigma/alpha equally spaced in their rho-th root (Karras et al. 2022, eq. 5)."""
    hi, lo = bounds(schedule)
    ramp = np.linspace(0, 1, steps)
    return by_ratio(schedule, (hi ** (1 / rho) + ramp * (lo ** (1 / rho) - hi ** (1 / rho))) ** rho, end)


def exponential(schedule: Schedule, steps: int, end: Level = CLEAN) -> Path:
    """Ratios sigma/alpha equally spaced in their logarithm, that is, uniform in lambda."""
    hi, lo = bounds(schedule)
    return by_ratio(schedule, np.exp(np.linspace(log(hi), log(lo), steps)), end)


SPACINGS: dict[str, Spacing] = {
    "leading": leading,
    "from_zero": from_zero,
    "uniform": uniform,
    "trailing": trailing,
    "linspace": linspace,
    "karras": karras,
    "exponential": exponential,
}


def along(schedule: Schedule, times: Iterable[float], end: Level) -> Path:
    """The levels at the given times, then the end."""
    return (*(schedule.at(float(t)) for t in times), end)


def by_ratio(schedule: Schedule, ratios: Iterable[float], end: Level) -> Path:
    """The levels of the given ratios sigma/alpha, then the end."""
    return (*(schedule.at_lam(-log(float(ratio))) for ratio in ratios), end)


def bounds(schedule: Schedule) -> tuple[float, float]:
    """The ratios sigma/alpha of the noisiest and of the cleanest level of the schedule."""
    return schedule.at(schedule.steps - 1).ratio, schedule.at(0).ratio


def whole(schedule: Schedule, path: Path) -> Path:
    """The same path on whole training steps, the only ones a table of alphas knows; the end stays."""
    *levels, end = path
    return along(schedule, [round(level.t) for level in levels], end)
