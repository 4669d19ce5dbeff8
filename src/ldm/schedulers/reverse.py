"""The reverse process: one step from a noisier level t to a cleaner level s.

    x_s = alpha_s x0 + sqrt(sigma_s² - up²) eps + up z,        eps = (x_t - alpha_t x0) / sigma_t

Every solver is a rule for choosing x0, and how much noise `up` to draw afresh (Song et al. 2021, eq. 12).
"""

from collections.abc import Callable
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from ldm.schedulers.forward import Level


def step(x: Tensor, x0: Tensor, now: Level, nxt: Level, up: float = 0.0, z: Tensor | None = None) -> Tensor:
    """x_s from x_t. x, x0 and fresh unit noise z are [b c h w]; z is needed where up > 0."""
    # eps put into the first equation, so that only two products over the latent are left:
    keep = sqrt(max(0.0, nxt.sigma**2 - up**2)) / now.sigma
    x_s = torch.add(x0 * (nxt.alpha - keep * now.alpha), x, alpha=keep)
    return x_s if z is None else torch.add(x_s, z, alpha=up)


def ancestral(now: Level, nxt: Level, eta: float) -> float:
    """`up` of DDIM (Song et al. 2021, eq. 16): none at eta = 0, DDPM's posterior deviation at eta = 1."""
    return eta * nxt.sigma * sqrt(max(0.0, 1.0 - (now.alpha * nxt.sigma / (nxt.alpha * now.sigma)) ** 2))


class Motion(Protocol):
    """Brownian motion along lambda, such as `ldm.Brownian`."""

    def between(self, a: float, b: float) -> Tensor:
        """What it did from a to b, as unit noise [b c h w]."""


Draw = Callable[[], Tensor]  # () -> fresh unit noise [b c h w]


def drawn(noise: Draw | Motion, now: Level, nxt: Level) -> Tensor:
    """Unit noise for a step: fresh, or what Brownian motion did in it."""
    return noise() if callable(noise) else noise.between(now.lam, nxt.lam)
