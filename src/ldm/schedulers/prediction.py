"""What a network is trained to output, and how the clean latent is read out of it.

    eps:  out = eps                        x0 = (x - sigma out) / alpha        (Ho et al. 2020, eq. 12)
    v:    out = alpha eps - sigma x0       x0 = alpha x - sigma out            (Salimans & Ho 2022, app. D)
    x0:   out = x0

Nothing else in the library knows which of them a network was trained for.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ldm.schedulers.forward import Level, Levels


class Prediction(NamedTuple):
    """A pair of formulas; all tensors [b c h w]."""

    name: str
    target: Callable[[Tensor, Tensor, Level | Levels], Tensor]  # (x0, eps, level) -> what to output
    x0: Callable[[Tensor, Tensor, Level | Levels], Tensor]  # (x, out, level) -> the clean latent it implies


# Functions with names, so that a family can be pickled.


def eps_target(x0: Tensor, eps: Tensor, level: Level | Levels) -> Tensor:
    """out = eps."""
    return eps


def eps_x0(x: Tensor, out: Tensor, level: Level | Levels) -> Tensor:
    """x0 = (x - sigma out) / alpha."""
    return (x - level.sigma * out) / level.alpha


def v_target(x0: Tensor, eps: Tensor, level: Level | Levels) -> Tensor:
    """out = alpha eps - sigma x0."""
    return level.alpha * eps - level.sigma * x0


def v_x0(x: Tensor, out: Tensor, level: Level | Levels) -> Tensor:
    """x0 = alpha x - sigma out."""
    return level.alpha * x - level.sigma * out


def x0_target(x0: Tensor, eps: Tensor, level: Level | Levels) -> Tensor:
    """out = x0."""
    return x0


def x0_x0(x: Tensor, out: Tensor, level: Level | Levels) -> Tensor:
    """x0 = out."""
    return out


EPS = Prediction("eps", eps_target, eps_x0)
V = Prediction("v", v_target, v_x0)
X0 = Prediction("x0", x0_target, x0_x0)
