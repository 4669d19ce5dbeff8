"""UniPC: a multistep predictor whose last step is done again when its end is known (Zhao et al. 2023)."""

from collections.abc import Sequence
from itertools import pairwise
from math import expm1, inf

import torch
from torch import Tensor

from ldm.schedulers.forward import Level
from ldm.schedulers.reverse import Draw, step
from ldm.schedulers.solvers.ddim import Denoise, Steps


def uni_pc(denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw) -> Steps:
    """Order 2 with B(h) = e^h - 1: the predictor is DPM-Solver++(2M), the last step is of first order."""
    past: list[tuple[Level, Tensor]] = []  # level and x0, the newest first
    before = x
    for i, (now, nxt) in enumerate(pairwise(path)):
        x0 = denoise(x, now)
        if past:
            x = step(before, corrected(x0, now, past), past[0][0], now)
        past = [(now, x0), *past[:1]]
        chosen = extrapolated(past, nxt) if i + 2 < len(path) else x0
        before, x = x, step(x, chosen, now, nxt)
        yield x, x0


def extrapolated(past: Sequence[tuple[Level, Tensor]], nxt: Level) -> Tensor:
    """x0 in the middle of the next step, on the line through the last two."""
    now, x0 = past[0]
    if len(past) == 1 or past[1][0].lam == -inf or nxt.lam == inf:
        return x0
    then, x1 = past[1]
    return torch.lerp(x1, x0, 1 + (nxt.lam - now.lam) / (2 * (now.lam - then.lam)))


def corrected(x0: Tensor, now: Level, past: Sequence[tuple[Level, Tensor]]) -> Tensor:
    """The x0 with which to do the step to `now` again, given the one that was found there (eq. 9)."""
    last, x1 = past[0]
    if len(past) == 1 or past[1][0].lam == -inf:
        return torch.lerp(x1, x0, 0.5)
    then, x2 = past[1]
    h = now.lam - last.lam
    r = (then.lam - last.lam) / h  # negative
    one = (expm1(-h) / -h - 1) / expm1(-h)
    two = 2 * ((expm1(-h) / -h - 1) / -h - 0.5) / expm1(-h)
    share = (one - two) / (1 - r)
    return torch.add(torch.lerp(x1, x0, one - share), x2 - x1, alpha=share / r)
