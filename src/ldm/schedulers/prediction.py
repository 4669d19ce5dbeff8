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


EPS = Prediction(
    "eps",
    target=lambda x0, eps, level: eps,
    x0=lambda x, out, level: (x - level.sigma * out) / level.alpha,
)
V = Prediction(
    "v",
    target=lambda x0, eps, level: level.alpha * eps - level.sigma * x0,
    x0=lambda x, out, level: level.alpha * x - level.sigma * out,
)
X0 = Prediction(
    "x0",
    target=lambda x0, eps, level: x0,
    x0=lambda x, out, level: out,
)
