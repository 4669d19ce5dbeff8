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
    own = kind(request.seeds, shape, device)
    others, shares = ways(request)
    return way(own, kind(others, shape, device), shares) if any(shares) else own


def moving(request: Request, shape: tuple[int, int, int], schedule: Schedule, device: torch.device) -> Motion:
    """The Brownian motion of the stochastic solvers."""
    own = Brownian(request.seeds, shape, *schedule.lams, device)
    others, shares = ways(request)
    return BrownianWay(own, Brownian(others, shape, *schedule.lams, device), shares) if any(shares) else own


def ways(request: Request) -> tuple[list[int], list[float]]:
    """For each image the other seed, 0 where there is none, and how far its noise is on the way to it."""
    return [v.seed or 0 for v in request.variations], [v.share for v in request.variations]
