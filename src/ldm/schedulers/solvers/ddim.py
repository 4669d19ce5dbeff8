"""DDIM: x0 is what the network says. One solver under four names.

DDIM  = Euler            eta = 0: the first is written for x, the second for x / alpha
DDPM  = Euler ancestral  eta = 1: the same noise is drawn afresh, the paths differ
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from ldm.schedulers.forward import Level
from ldm.schedulers.reverse import Draw, ancestral, step

Denoise = Callable[[Tensor, Level], Tensor]
Steps = Iterator[tuple[Tensor, Tensor]]  # (x, x0) after every step


def ddim(denoise: Denoise, x: Tensor, path: Sequence[Level], noise: Draw, eta: float = 0.0) -> Steps:
    """Follow `path` from x; yields (x, x0) after every step (Song et al. 2021, eq. 12 and 16).

    denoise  (x [b c h w], level) -> x0 [b c h w]
    noise    () -> fresh unit noise [b c h w]; called once a step where eta > 0
    eta      share of the noise drawn afresh, 0 (none) to 1 (DDPM)
    """
    for now, nxt in pairwise(path):
        x0 = denoise(x, now)
        up = ancestral(now, nxt, eta)
        x = step(x, x0, now, nxt, up, noise() if up else None)
        yield x, x0
