"""The samplers by name: each is a solver and the path it follows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TypeVar

from torch import Tensor

from ldm.checks import number, shown
from ldm.errors import InputError
from ldm.schedulers.forward import CLEAN, Level, Schedule
from ldm.schedulers.solvers import Denoise, ddim
from ldm.schedulers.spacing import SPACINGS, Path, Spacing, whole

T = TypeVar("T")


@dataclass(frozen=True)
class Sampler:
    """A solver with the spacing of its path."""

    name: str
    solver: Callable[..., Iterator[tuple[Tensor, Tensor]]]
    eta: float = 0.0  # share of the noise drawn afresh at each step
    spacing: Spacing | None = None  # None: the family's
    whole: bool = False  # only whole training steps are visited
    ends_clean: bool = True  # the path ends without noise; else at the family's last level

    def path(self, schedule: Schedule, steps: int, spacing: Spacing, last: Level = CLEAN) -> Path:
        """The levels to visit: by the sampler's own spacing or else the given one of the family.

        steps  1 to schedule.steps.
        last   the family's last level, for the samplers that end there (DDIM).
        """
        path = (self.spacing or spacing)(schedule, steps, CLEAN if self.ends_clean else last)
        return whole(schedule, path) if self.whole else path

    def solve(
        self, denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Callable[[], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Follow `path` from x [b c h w]; yields (x, x0) after every step. See `solvers`."""
        return self.solver(denoise, x, path, noise, self.eta)


SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddim", ddim, whole=True, ends_clean=False),
        Sampler("ddpm", ddim, eta=1.0, whole=True),
        Sampler("euler", ddim),
        Sampler("euler_ancestral", ddim, eta=1.0),
    )
}


def sampler(name: str, *, spacing: str | Spacing | None = None, eta: float | None = None) -> Sampler:
    """A sampler by name, with another spacing or share of fresh noise than its own if asked.

    name     ddim, ddpm, euler or euler_ancestral
    spacing  leading, from_zero, uniform, trailing, linspace, karras, exponential, or a function
             (schedule, steps, end) -> path
    eta      0 (no fresh noise) to 1 (DDPM's)
    Raises InputError for a name that is not known and for an eta outside [0, 1].
    """
    chosen = look_up("sampler", name, SAMPLERS)
    if spacing is not None:
        spacing = look_up("spacing", spacing, SPACINGS) if isinstance(spacing, str) else spacing
        if not callable(spacing):
            raise InputError(f"spacing must be a name or a function, not {shown(spacing)}")
        chosen = replace(chosen, spacing=spacing)
    if eta is not None:
        chosen = replace(chosen, eta=number("eta", eta, 0, 1))
    return chosen


def look_up(kind: str, name: str, table: dict[str, T]) -> T:
    """table[name], or an InputError that offers the nearest name."""
    if isinstance(name, str) and name in table:
        return table[name]
    near = get_close_matches(str(name), table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"unknown {kind} {shown(name)}; {hint}there are {', '.join(table)}")
