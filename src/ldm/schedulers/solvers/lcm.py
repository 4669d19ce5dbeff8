"""LCM: the network jumps to the end, and the noise of the next level is put on again (Luo et al. 2023)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from ldm.schedulers.forward import Level
from ldm.schedulers.reverse import Draw, step
from ldm.schedulers.solvers.ddim import Denoise

SPREAD = 0.5  # sigma_data of the consistency function
SCALE = 10.0  # of the times it is told


def lcm(denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw) -> Iterator[tuple[Tensor, Tensor]]:
    """x0 = c_skip x + c_out x0: the boundary, f(x, 0) = x, is kept (eq. 4 and 8); all noise is fresh."""
    for now, nxt in pairwise(path):
        x0 = denoise(x, now)
        power = (SCALE * now.t) ** 2
        skip, out = SPREAD**2 / (power + SPREAD**2), (power / (power + SPREAD**2)) ** 0.5
        x = step(x, skip * x + out * x0, now, nxt, nxt.sigma, noise() if nxt.sigma else None)
        yield x, x0
