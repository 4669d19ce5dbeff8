"""DPM-Solver++: exact in lambda but for x0, which is extrapolated (Lu et al. 2022b).

With h = lambda_s - lambda_t a step is x_s = (sigma_s / sigma_t) x + alpha_s (1 - e^-h) D: that of `reverse`
with D for x0. The stochastic ones draw `up` of their noise afresh, which cuts the memory of x by e^-(eta h).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import expm1, inf, sqrt

import torch
from torch import Tensor

from ldm.schedulers.forward import Level
from ldm.schedulers.reverse import Draw, Motion, ancestral, drawn, step
from ldm.schedulers.solvers.ddim import Denoise, Steps
from ldm.schedulers.spacing import middle


def dpmpp_2m(denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw | Motion) -> Steps:
    """D from the last two x0, on a straight line in lambda (alg. 2)."""
    return dpmpp_2m_sde(denoise, x, path, noise, eta=0.0)


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw | Motion, eta: float = 1.0
) -> Steps:
    """The same with fresh noise (the midpoint rule of k-diffusion)."""
    before, h_before = x, 0.0
    for now, nxt in pairwise(path):
        x0, h = denoise(x, now), nxt.lam - now.lam
        chosen = x0
        if 0 < h_before < inf and h < inf:
            chosen = torch.lerp(before, x0, 1 + h / (2 * h_before))
        x = renewed(x, chosen, now, nxt, eta, noise)
        before, h_before = x0, h
        yield x, x0


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw | Motion, eta: float = 1.0
) -> Steps:
    """D from the last three x0, on a parabola in lambda (k-diffusion)."""
    past: list[tuple[Tensor, float]] = []  # x0 and the step that followed it, the newest first
    for now, nxt in pairwise(path):
        x0, h = denoise(x, now), nxt.lam - now.lam
        chosen, long = x0, h * (1 + eta)
        past = [(then, width) for then, width in past if width < inf]
        if past and h < inf:
            decay = -expm1(-long)
            second = 1 - decay / long
            r0, weights = past[0][1] / h, (second / decay, 0.0)  # of the slope, and of how it changes
            if len(past) == 2:
                r1 = past[1][1] / h
                bend = (second * r0 - second / long + 0.5) / decay / (r0 + r1)
                weights = (second / decay + bend, bend / r1)
            slope, change = weights
            chosen = torch.lerp(past[0][0], x0, 1 + slope / r0)
            if change:
                chosen = torch.add(chosen, past[1][0] - past[0][0], alpha=change)
        x = renewed(x, chosen, now, nxt, eta, noise)
        past = [(x0, h), *past[:1]]
        yield x, x0


def dpmpp_sde(
    denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw | Motion, eta: float = 1.0
) -> Steps:
    """D is x0 at the middle of the step in lambda (alg. 1 with r = 1/2); two calls, and two draws, a step."""
    for now, nxt in pairwise(path):
        x0 = chosen = denoise(x, now)
        if nxt.sigma and now.alpha:
            mid = middle(path, now, nxt)
            up = ancestral(now, mid, eta)
            there = step(x, x0, now, mid, up, drawn(noise, now, mid) if up else None)
            chosen = denoise(there, mid)
        up = ancestral(now, nxt, eta)
        x = step(x, chosen, now, nxt, up, drawn(noise, now, nxt) if up else None)
        yield x, x0


def renewed(x: Tensor, x0: Tensor, now: Level, nxt: Level, eta: float, noise: Draw | Motion) -> Tensor:
    """The step that follows dx = … dlambda + sqrt(2 eta) sigma dw exactly where x0 stays."""
    up = 0.0
    if eta and nxt.sigma:
        up = nxt.sigma * sqrt(-expm1(-2 * eta * (nxt.lam - now.lam)))
    return step(x, x0, now, nxt, up, drawn(noise, now, nxt) if up else None)
