"""The learning rate over a run, as a factor of its peak for each optimiser step, counted from 0.

    step < warmup    (step + 1) / warmup                                  (Goyal et al. 2017, sec. 2.2)
    then             fade(p),  p = (step - warmup) / (steps - warmup)
    fade(p)          1,  1 - p,  or  (1 + cos(pi p)) / 2                  (Loshchilov & Hutter 2017, eq. 5)

A linear warm-up alone is "constant" with a warm-up. No step of the run has the factor 0.
"""

from collections.abc import Callable
from functools import partial
from math import cos, pi

from ldm.checks import whole
from ldm.schedulers.samplers import look_up

Rate = Callable[[int], float]
LONGEST = 10**9  # steps


def rate(name: str, steps: int, warmup: int = 0) -> Rate:
    """A schedule by name: `rate("cosine", 100_000, warmup=1000)(step)` -> factor of the peak in [0, 1].

    name    constant, linear or cosine
    steps   optimiser steps of the whole run; from there on a fading rate stays 0
    warmup  of them, in how many the factor rises to 1
    Fits `torch.optim.lr_scheduler.LambdaLR`.
    Raises InputError for an unknown name, and a warm-up longer than the run.
    """
    steps = whole("steps", steps, LONGEST)
    return partial(
        factor, fade=look_up("rate", name, RATES), steps=steps, warmup=whole("warmup", warmup, steps, least=0)
    )


def factor(step: int, fade: Callable[[float], float], steps: int, warmup: int) -> float:
    """The factor of one step."""
    if step < warmup:
        return (step + 1) / warmup
    return fade((step - warmup) / (steps - warmup) if step < steps else 1.0)


def constant(p: float) -> float:
    """1."""
    return 1.0


def linear(p: float) -> float:
    """1 - p."""
    return 1.0 - p


def cosine(p: float) -> float:
    """Half a wave from 1 to 0."""
    return (1.0 + cos(pi * p)) / 2


RATES = {"constant": constant, "linear": linear, "cosine": cosine}
