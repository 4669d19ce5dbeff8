"""The noise of a request: whose generator, of which seeds, and how far on the way to other seeds."""

import torch

from ldm.noise import Brownian, BrownianWay, Draws, Noise, way
from ldm.philox import Philox
from ldm.request import Request
from ldm.schedulers import Schedule
from ldm.schedulers.reverse import Motion


def drawing(request: Request, shape: tuple[int, int, int], device: torch.device) -> Draws:
    """Fresh unit noise [b c h w] at every call; shape (c, h, w)."""
    kind = Philox if request.details.noise == "philox" else Noise
    own, shares = kind(request.seeds, shape, device), [variation.share for variation in request.variations]
    if not any(shares):
        return own
    return way(own, kind([variation.seed for variation in request.variations], shape, device), shares)


def moving(request: Request, shape: tuple[int, int, int], schedule: Schedule, device: torch.device) -> Motion:
    """The Brownian motion of the stochastic solvers."""
    own, shares = (
        Brownian(request.seeds, shape, *schedule.lams, device),
        [v.share for v in request.variations],
    )
    if not any(shares):
        return own
    others = [variation.seed for variation in request.variations]
    return BrownianWay(own, Brownian(others, shape, *schedule.lams, device), shares)
