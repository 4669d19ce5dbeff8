"""Which levels a sampler visits: `(schedule, steps, end) -> path`, noisiest first, the end included.

A path is a tuple of steps + 1 Levels that knows its schedule. Image to image is `path[k:]`; a hand-over
between two models is `path[:k+1]` and `path[k:]`. Steps are whole numbers from 1 to `schedule.steps`.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
from torch import Tensor

from ldm.checks import number, shown
from ldm.errors import InputError
from ldm.schedulers.forward import CLEAN, LEAST, Level, Schedule, level_at


class Path(tuple[Level, ...]):
    """The levels to visit, and the schedule that tells what lies between them."""

    schedule: Schedule

    def __new__(cls, levels: Iterable[Level], schedule: Schedule) -> "Path":
        path = super().__new__(cls, levels)
        path.schedule = schedule
        return path

    def __getnewargs__(self) -> tuple[tuple[Level, ...], Schedule]:
        return tuple(self), self.schedule

    def __getitem__(self, i: Any) -> Any:
        found = super().__getitem__(i)
        return Path(found, self.schedule) if isinstance(i, slice) else found


Spacing = Callable[[Schedule, int, Level], Path]


def middle(path: Sequence[Level], now: Level, nxt: Level) -> Level:
    """The level half way in lambda between two that have signal and noise.

    On a path that knows no schedule its t is half way too, which is not quite what the network would be told.
    """
    lam = (now.lam + nxt.lam) / 2
    return path.schedule.at_lam(lam) if isinstance(path, Path) else level_at((now.t + nxt.t) / 2, lam)


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


def sgm_uniform(schedule: Schedule, steps: int, end: Level = CLEAN) -> Path:
    """steps + 1 equal strides from T - 1 to 0, the last not visited: the code of Podell et al. (2023)."""
    return along(schedule, np.linspace(schedule.steps - 1, 0, steps + 1)[:-1], end)


def simple(schedule: Schedule, steps: int, end: Level = CLEAN) -> Path:
    """Every (T / steps)-th whole time down from T - 1, rounded up: ComfyUI's."""
    times = [schedule.steps - 1 - int(i * schedule.steps / steps) for i in range(steps)]
    return along(schedule, times, end)


def beta(schedule: Schedule, steps: int, end: Level = CLEAN, a: float = 0.6, b: float = 0.6) -> Path:
    """Whole times at equal shares of a beta distribution: dense at both ends (Lee et al. 2024).

    Where two would be the same time, it is visited once, and the path is shorter.
    """
    shares = beta_quantiles(1 - np.linspace(0, 1, steps, endpoint=False), a, b)
    times = np.round(shares * (schedule.steps - 1))
    return along(schedule, dict.fromkeys(times.tolist()), end)


def align_your_steps(schedule: Schedule, steps: int, end: Level = CLEAN) -> Path:
    """Ratios found for Stable Diffusion 1 by Sabour et al. (2024); log-linear between their ten steps."""
    return between_ten(schedule, steps, end, STEPS_SD)


def align_your_steps_xl(schedule: Schedule, steps: int, end: Level = CLEAN) -> Path:
    """The same found for SDXL."""
    return between_ten(schedule, steps, end, STEPS_XL)


# Sabour et al. 2024, "Align Your Steps": the published noise levels of ten steps, the last 0 left out.
STEPS_SD = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152)
STEPS_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113)


def between_ten(schedule: Schedule, steps: int, end: Level, ratios: Sequence[float]) -> Path:
    """Log-linear interpolation of a table of ratios."""
    places = np.linspace(0, 1, steps)
    logs = np.interp(places, np.linspace(0, 1, len(ratios)), np.log(ratios))
    high, low = bounds(schedule)
    return by_ratio(schedule, np.clip(np.exp(logs), low, high), end)


def of_times(times: Sequence[float]) -> Spacing:
    """A spacing that visits the given times, whatever the number of steps."""
    return lambda schedule, steps, end: along(schedule, times, end)


def of_ratios(ratios: Sequence[float]) -> Spacing:
    """A spacing that visits the given ratios sigma / alpha; a last 0 is the clean end."""
    *visited, last = ratios
    visited = visited if last == 0 else [*visited, last]
    return lambda schedule, steps, end: by_ratio(schedule, visited, CLEAN if last == 0 else end)


def falling(name: str, values: Any) -> list[float]:
    """Numbers, each less than the one before it, not below 0. Raises InputError."""
    rows = values.tolist() if isinstance(values, (np.ndarray, Tensor)) else values
    if not isinstance(rows, (list, tuple, range)) or not rows or rows[0] == 0:
        raise InputError(
            f"{name} must be a list of numbers that fall from noise to image, not {shown(values)}"
        )
    numbers = [number(name, row, 0, 1e9) for row in rows]
    if not all(a > b for a, b in pairwise(numbers)):
        raise InputError(f"{name} must fall from noise to image, each less than the one before")
    return numbers


def beta_quantiles(shares: np.ndarray, a: float, b: float) -> np.ndarray:
    """Where the distribution Beta(a, b) on [0, 1] has the given shares of itself below. float64.

    With x = sin²(u) its density over u is smooth but for the ends: sin^(2a-1) cos^(2b-1).
    """
    u = np.linspace(0, np.pi / 2, 2**16 + 1)
    mid = (u[1:] + u[:-1]) / 2
    mass = np.concatenate([[0.0], np.cumsum(np.sin(mid) ** (2 * a - 1) * np.cos(mid) ** (2 * b - 1))])
    return np.sin(np.interp(shares, mass / mass[-1], u)) ** 2


SPACINGS: dict[str, Spacing] = {
    "leading": leading,
    "from_zero": from_zero,
    "uniform": uniform,
    "trailing": trailing,
    "linspace": linspace,
    "karras": karras,
    "exponential": exponential,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "beta": beta,
    "align_your_steps": align_your_steps,
    "align_your_steps_xl": align_your_steps_xl,
}


def name_of(spacing: Spacing) -> str:
    """Its name; "custom" for one that has none."""
    return next((name for name, known in SPACINGS.items() if known is spacing), "custom")


def along(schedule: Schedule, times: Iterable[float], end: Level) -> Path:
    """The levels at the given times, then the end."""
    return Path((*(schedule.at(float(t)) for t in times), end), schedule)


def by_ratio(schedule: Schedule, ratios: Iterable[float], end: Level) -> Path:
    """The levels of the given ratios sigma/alpha, then the end."""
    return Path((*(schedule.at_lam(-log(float(ratio))) for ratio in ratios), end), schedule)


def bounds(schedule: Schedule) -> tuple[float, float]:
    """The ratios sigma/alpha of the noisiest and of the cleanest level of the schedule."""
    return min(schedule.at(schedule.steps - 1).ratio, 1 / LEAST), schedule.at(0).ratio


def whole(schedule: Schedule, path: Path) -> Path:
    """The same path on whole training steps, the only ones a table of alphas knows; the end stays."""
    *levels, end = path
    return along(schedule, [round(level.t) for level in levels], end)
