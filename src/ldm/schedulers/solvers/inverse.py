"""DDIM backwards: from an image to the noise that it comes from.

The step from t to s, x_s = keep x_t + (alpha_s - keep alpha_t) D(x_t) with keep = sigma_s / sigma_t, is
solved for x_t. The usual inversion puts D(x_s) for D(x_t) (Song et al. 2021, sec. 4.3), and misses a bit at
every step. Here that is the first guess of a fixed-point iteration (Pan et al. 2023), which ends on the x_t
from which DDIM comes back to x_s.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.schedulers.forward import Level
from ldm.schedulers.reverse import step
from ldm.schedulers.solvers.ddim import Denoise

PAST = 6  # iterates that a new one is made of


def invert(
    denoise: Denoise, x: Tensor, path: Sequence[Level], *, rounds: int = 20, tolerance: float = 1e-7
) -> Iterator[tuple[Tensor, float]]:
    """Walk `path` from its end to its beginning; yields x [b c h w], and how much of it DDIM misses.

    path       as for sampling, noisiest first; its end must have some noise
    rounds     at most so many calls of the network a step; 1 is the usual inversion, its miss is not measured
    tolerance  relative miss at which a step is done
    Raises InputError for a path that ends clean: from there no way leads back.
    """
    *_, end = path
    if not end.sigma:
        raise InputError("a path that ends clean cannot be walked back; end it at schedule.at(0)")
    for nxt, now in pairwise(reversed(path)):
        keep, target = nxt.sigma / now.sigma, x
        x = (target - (nxt.alpha - keep * now.alpha) * denoise(target, now)) / keep
        best, miss = x, float("inf")
        xs: list[Tensor] = []
        offs: list[Tensor] = []
        for _ in range(rounds - 1):
            off = target - step(x, denoise(x, now), now, nxt)
            if (found := float(off.norm() / target.norm())) < miss:
                best, miss = x, found
            if miss <= tolerance:
                break
            # scaled as if x0 were x / alpha, the steepest that a step is where x holds one thing alone
            xs, offs = [x, *xs[: PAST - 1]], [off * (now.alpha / nxt.alpha), *offs[: PAST - 1]]
            x = mixed(xs, offs)
        x = best
        yield x, miss


def mixed(xs: Sequence[Tensor], offs: Sequence[Tensor]) -> Tensor:
    """The next iterate x + off, of the past ones the mixture whose offs cancel best (Anderson 1965)."""
    (x, *olds), (off, *before) = xs, offs
    if not olds:
        return x + off
    dx = torch.stack([(x - old).flatten(1) for old in olds], dim=-1)  # [b n m]
    df = torch.stack([(off - old).flatten(1) for old in before], dim=-1)
    share = torch.linalg.pinv(df) @ off.flatten(1)[..., None]
    return x + off - ((dx + df) @ share)[..., 0].reshape(x.shape)
