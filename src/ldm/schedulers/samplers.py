"""The samplers by name: each is a solver and the path it follows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from ldm.checks import nearest, number, shown
from ldm.errors import InputError
from ldm.schedulers.forward import CLEAN, Level, Schedule
from ldm.schedulers.reverse import Draw, Motion
from ldm.schedulers.solvers import (
    Denoise,
    Steps,
    ddim,
    dpm_2,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m_sde,
    dpmpp_sde,
    heun,
    lcm,
    lms,
    plms,
    uni_pc,
)
from ldm.schedulers.spacing import SPACINGS, Path, Spacing, falling, of_ratios, of_times, whole

T = TypeVar("T")


@dataclass(frozen=True)
class Sampler:
    """A solver with the spacing of its path."""

    name: str
    solver: Callable[..., Iterator[tuple[Tensor, Tensor]]]
    eta: float | None = None  # share of the noise drawn afresh at each step; None: the solver has no choice
    spacing: Spacing | None = None  # None: the family's
    whole: bool = False  # only whole training steps are visited
    ends_clean: bool = True  # the path ends without noise; else at the family's last level
    brownian: bool = False  # its noise is Brownian motion along lambda
    steps: int | None = None  # how many it takes, where the spacing is a list

    def path(self, schedule: Schedule, steps: int, spacing: Spacing, last: Level = CLEAN) -> Path:
        """The levels to visit: by the sampler's own spacing or else the given one of the family.

        steps  1 to schedule.steps.
        last   the family's last level, for the samplers that end there (DDIM).
        """
        path = (self.spacing or spacing)(schedule, steps, CLEAN if self.ends_clean else last)
        return whole(schedule, path) if self.whole else path

    def solve(self, denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw | Motion) -> Steps:
        """Follow `path` from x [b c h w]; yields (x, x0) after every step. See `solvers`.

        noise  () -> fresh unit noise [b c h w]; or, for the stochastic DPM-Solvers, a `Brownian`
        """
        extra = {} if self.eta is None else {"eta": self.eta}
        return self.solver(denoise, x, path, noise, **extra)


SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddim", ddim, eta=0.0, whole=True, ends_clean=False),
        Sampler("ddpm", ddim, eta=1.0, whole=True),
        Sampler("euler", ddim, eta=0.0),
        Sampler("euler_ancestral", ddim, eta=1.0),
        Sampler("heun", heun),
        Sampler("lms", lms),
        Sampler("plms", plms, whole=True, ends_clean=False),
        Sampler("dpm_2", dpm_2),
        Sampler("dpmpp_2m", dpmpp_2m),
        Sampler("dpmpp_2m_sde", dpmpp_2m_sde, eta=1.0, brownian=True),
        Sampler("dpmpp_sde", dpmpp_sde, eta=1.0, brownian=True),
        Sampler("dpmpp_3m_sde", dpmpp_3m_sde, eta=1.0, brownian=True),
        Sampler("uni_pc", uni_pc),
        Sampler("lcm", lcm, eta=1.0, whole=True),
    )
}


def sampler(
    name: str,
    *,
    spacing: str | Spacing | None = None,
    eta: float | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Sampler:
    """A sampler by name, with another spacing or share of fresh noise than its own if asked.

    name       one of `ldm.schedulers.samplers.SAMPLERS`: ddim, ddpm, euler, euler_ancestral, heun, …
    spacing    one of `ldm.schedulers.spacing.SPACINGS`: leading, trailing, linspace, karras, exponential,
               sgm_uniform, simple, beta, align_your_steps, …; or a function (schedule, steps, end) -> path
    eta        0 (no fresh noise) to 1 (DDPM's), for the samplers that draw some
    timesteps  instead of a spacing, the times to visit, falling
    sigmas     the same as noise over signal (sigma / alpha), falling; a last 0 ends clean
    Raises InputError for a name that is not known, an eta outside [0, 1], and lists that do not fall.
    """
    chosen = look_up("sampler", name, SAMPLERS)
    if sum(given is not None for given in (spacing, timesteps, sigmas)) > 1:
        raise InputError("spacing, timesteps and sigmas say the same thing; give one of them")
    if spacing is not None:
        spacing = look_up("spacing", spacing, SPACINGS) if isinstance(spacing, str) else spacing
        if not callable(spacing):
            raise InputError(f"spacing must be a name or a function, not {shown(spacing)}")
        chosen = replace(chosen, spacing=spacing)
    if timesteps is not None:
        times = falling("timesteps", timesteps)
        chosen = replace(chosen, spacing=of_times(times), steps=len(times))
    if sigmas is not None:
        ratios = falling("sigmas", sigmas)
        chosen = replace(chosen, spacing=of_ratios(ratios), steps=sum(ratio > 0 for ratio in ratios))
    if eta is not None:
        if chosen.eta is None:
            raise InputError(f"{name} does not choose how much noise to draw; leave eta out")
        chosen = replace(chosen, eta=number("eta", eta, 0, 1))
    return chosen


def look_up(kind: str, name: str, table: dict[str, T]) -> T:
    """table[name], or an InputError that offers the nearest name."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise InputError(f"unknown {kind} {shown(name)}; {nearest(str(name), table)}")
