"""Solvers that put slopes together: with y = x / alpha and r = sigma / alpha, dy / dr = eps.

(Karras et al. 2022, eq. 3.) Each chooses an eps; the step is then the one of `reverse`. Where no signal is
left, y is infinite, so a step from there is DDIM's.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.schedulers.forward import Level
from ldm.schedulers.reverse import Draw, step
from ldm.schedulers.solvers.ddim import Denoise, Steps
from ldm.schedulers.spacing import middle

ADAMS = (  # weights of Adams and Bashforth for two slopes and more, of the newest first
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class Slope(NamedTuple):
    """eps at a level."""

    times_sigma: Tensor  # [b c h w]
    level: Level


def heun(denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw) -> Steps:
    """The mean of the slopes at both ends of a step (Karras et al. 2022, alg. 1); two calls a step."""
    for now, nxt in pairwise(path):
        x0 = denoise(x, now)
        there = step(x, x0, now, nxt)
        if nxt.sigma and now.alpha:
            slopes = [slope(x, x0, now), slope(there, denoise(there, nxt), nxt)]
            there = along(x, now, nxt, slopes, (0.5, 0.5))
        x = there
        yield x, x0


def dpm_2(denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw) -> Steps:
    """The slope at the middle of a step in lambda (Karras et al. 2022; Lu et al. 2022a); two calls a step."""
    for now, nxt in pairwise(path):
        x0 = denoise(x, now)
        if nxt.sigma and now.alpha:
            mid = middle(path, now, nxt)
            there = step(x, x0, now, mid)
            x = along(x, now, nxt, [slope(there, denoise(there, mid), mid)])
        else:
            x = step(x, x0, now, nxt)
        yield x, x0


def lms(denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw, order: int = 4) -> Steps:
    """The polynomial through the last `order` slopes, integrated over the step: linear multistep."""
    past: list[Slope] = []
    for now, nxt in pairwise(path):
        x0 = denoise(x, now)
        if now.alpha:
            past = [slope(x, x0, now), *past[: order - 1]]
            weights = lagrange([at.level.ratio for at in past], now.ratio, nxt.ratio)
            x = along(x, now, nxt, past, weights)
        else:
            x = step(x, x0, now, nxt)
        yield x, x0


def plms(denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw) -> Steps:
    """Slopes weighted as if all steps were equal (Liu et al. 2022, eq. 9); the first step is Heun's."""
    past: list[Slope] = []
    for now, nxt in pairwise(path):
        x0 = denoise(x, now)
        past = [slope(x, x0, now), *past[:3]] if now.alpha else []
        if len(past) > 1:
            x = along(x, now, nxt, past, ADAMS[len(past) - 2])
        else:
            there = step(x, x0, now, nxt)
            if past and nxt.sigma:
                there = along(x, now, nxt, [*past, slope(there, denoise(there, nxt), nxt)], (0.5, 0.5))
            x = there
        yield x, x0


def slope(x: Tensor, x0: Tensor, level: Level) -> Slope:
    """eps = (x - alpha x0) / sigma."""
    return Slope(torch.sub(x, x0, alpha=level.alpha), level)


def along(
    x: Tensor, now: Level, nxt: Level, slopes: Sequence[Slope], weights: Sequence[float] = (1.0,)
) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps with eps a weighted sum, and the x0 that x and it imply."""
    rise = nxt.sigma - nxt.alpha * now.ratio
    x = x * (nxt.alpha / now.alpha)
    for weight, (times_sigma, level) in zip(weights, slopes, strict=True):
        x = torch.add(x, times_sigma, alpha=rise * weight / level.sigma)
    return x


def lagrange(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """What each node's basis polynomial is on average from start to end; for at most four nodes."""
    mean, half = (start + end) / 2, (end - start) / 2
    points = (mean - half / sqrt(3), mean + half / sqrt(3))  # Gauss: exact for cubics
    weights = []
    for i, node in enumerate(nodes):
        total = 0.0
        for at in points:
            product = 0.5
            for j, other in enumerate(nodes):
                if j != i:
                    product *= (at - other) / (node - other)
            total += product
        weights.append(total)
    return weights
