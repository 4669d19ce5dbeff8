"""A denoiser that needs no weights: data of a Gaussian mixture, for which everything is known exactly.

    p(x0) = sum_k w_k N(m_k, s_k²)        each number of the latent by itself
    x_t   = alpha x0 + sigma eps          a mixture again: means alpha m_k, variances alpha² s_k² + sigma²
    E[x0 | x_t] = sum_k r_k (m_k + alpha s_k² (x_t - alpha m_k) / (alpha² s_k² + sigma²))

with r_k the posterior weights. In one dimension the probability flow keeps the order of points, and so the
share of the distribution below each: `flow` follows it exactly, however far (Song et al. 2021b, sec. 4.3).
"""

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from ldm.checks import shown
from ldm.errors import InputError
from ldm.schedulers.forward import Level

HALVINGS = 80  # of an interval; more than float64 can tell apart


@dataclass(frozen=True)
class GaussianMixture:
    """`oracle(x [...], level)` -> E[x0 | x], of x's shape and dtype: what a perfect network would say.

    weights, means, spreads  of the parts; weights add to 1, spreads are standard deviations
    Raises InputError for parts that are no mixture.
    """

    weights: tuple[float, ...] = (0.3, 0.7)
    means: tuple[float, ...] = (-1.0, 0.6)
    spreads: tuple[float, ...] = (0.3, 0.2)

    def __post_init__(self) -> None:
        same = len(self.weights) == len(self.means) == len(self.spreads) > 0
        if not same or min(self.weights) <= 0 or min(self.spreads) <= 0 or abs(sum(self.weights) - 1) > 1e-9:
            raise InputError(
                "a mixture needs as many weights above 0, that add to 1, as means and spreads above 0, "
                f"not {shown((self.weights, self.means, self.spreads))}"
            )

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        near, x0s = [], []
        for weight, mean, spread in self.parts():
            variance = (level.alpha * spread) ** 2 + level.sigma**2
            away = x - level.alpha * mean
            near.append(log(weight) - away**2 / (2 * variance) - log(variance) / 2)
            x0s.append(mean + level.alpha * spread**2 / variance * away)
        return (torch.stack(near).softmax(dim=0) * torch.stack(x0s)).sum(dim=0)

    def parts(self) -> list[tuple[float, float, float]]:
        """Weight, mean and spread of each."""
        return list(zip(self.weights, self.means, self.spreads, strict=True))

    def score(self, x: Tensor, level: Level) -> Tensor:
        """The slope of log p(x_t): (alpha E[x0 | x] - x) / sigma²."""
        return (level.alpha * self(x, level) - x) / level.sigma**2

    def below(self, x: Tensor, level: Level) -> Tensor:
        """The share of the distribution of x_t that is below x."""
        total = torch.zeros_like(x)
        for weight, mean, spread in self.parts():
            deviation = sqrt((level.alpha * spread) ** 2 + level.sigma**2)
            total = total + weight * torch.special.ndtr((x - level.alpha * mean) / deviation)
        return total

    def flow(self, x: Tensor, now: Level, nxt: Level) -> Tensor:
        """Where the probability flow takes x from one level to another, to rounding; best in float64."""
        share = self.below(x, now)
        widest = max(abs(mean) + 40 * spread for _, mean, spread in self.parts()) * nxt.alpha + 40 * nxt.sigma
        low, high = torch.full_like(x, -widest), torch.full_like(x, widest)
        for _ in range(HALVINGS):
            mid = (low + high) / 2
            left = self.below(mid, nxt) < share
            low, high = torch.where(left, mid, low), torch.where(left, high, mid)
        return (low + high) / 2

    def draw(self, noise: Tensor, level: Level) -> Tensor:
        """Where the flow takes unit noise to: points of the distribution at a level."""
        return self.flow(noise, Level(0.0, 0.0, 1.0), level)
