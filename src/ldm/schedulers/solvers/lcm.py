"""LCM: the network jumps to the end, and the noise of the next level is put on again (Luo et al. 2023)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ldm.schedulers.forward import Level
from ldm.schedulers.reverse import Draw, step
from ldm.schedulers.solvers.ddim import Denoise, Steps

SPREAD = 0.5  # sigma_data of the consistency function
SCALE = 10.0  # of the times it is told


def lcm(denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw, eta: float = 1.0) -> Steps:
    """x0 = c_skip x + c_out x0: the boundary, f(x, 0) = x, is kept (eq. 4, 8); eta of the noise is fresh."""
    for now, nxt in pairwise(path):
        x0 = denoise(x, now)
        power = (SCALE * now.t) ** 2
        skip, out = SPREAD**2 / (power + SPREAD**2), (power / (power + SPREAD**2)) ** 0.5
        up = eta * nxt.sigma
        x = step(x, skip * x + out * x0, now, nxt, up, noise() if up else None)
        yield x, x0
