"""A solver's own work: steps on a latent [1 4 64 64] with a denoiser that costs nothing, on one thread.

First alone, with noise given, where the goal is a time. Then with all that diffusers' schedulers do in `step`
(x0 from the network's eps, noise drawn from a generator), where the goal is a ratio.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import ldm
from benchmarks.table import Row
from benchmarks.timing import medians, threads
from ldm.families import SD1
from ldm.schedulers.samplers import SAMPLERS

SHAPE = (4, 64, 64)
STEPS = 50
ROUNDS = 31
GOAL = 60e-6  # seconds a step

PEERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def rows() -> Iterator[Row]:
    """A row for each solver alone, one for the noise, and one for each solver beside its peer."""
    with threads(1):
        yield from alone()
        yield from beside_peers()


def alone() -> Iterator[Row]:
    """The solver's own work a step: noise is given, x0 is x."""
    x, noise = ldm.Noise([0], SHAPE)(), ldm.Noise([1], SHAPE)
    given = noise()
    contestants = {name: walk(name, x, lambda: given, lambda x, level: x) for name in SAMPLERS}
    seconds = medians(contestants, ROUNDS)
    for name in SAMPLERS:
        yield Row(f"solver {name}, a step, noise given", seconds[name] / STEPS, most=GOAL)
    draws = medians({"noise": lambda: [noise() for _ in range(STEPS)]}, ROUNDS)
    yield Row("noise, a draw", draws["noise"] / STEPS, note="once a step where noise is fresh")
    motion = ldm.Brownian([0], SHAPE, *SD1.schedule.lams)
    levels = SD1.spacing(SD1.schedule, STEPS)
    between = medians({"motion": lambda: [motion.between(a.lam, b.lam) for a, b in pairwise(levels[:-1])]}, 5)
    yield Row(
        "Brownian noise, a draw",
        between["motion"] / (STEPS - 1),
        note="once or twice a step of the SDE solvers",
    )


def beside_peers() -> Iterator[Row]:
    """The same solvers with x0 read from eps and noise drawn, as diffusers' `step` does."""
    x = ldm.Noise([0], SHAPE)()
    for name, peer in PEERS.items():
        contestants = {
            "ours": walk(name, x, ldm.Noise([1], SHAPE), lambda x, level: ldm.EPS.x0(x, x, level)),
            "theirs": walk_peer(peer, x),
        }
        seconds = {who: value / STEPS for who, value in medians(contestants, ROUNDS).items()}
        yield Row(f"solver {name}, a step from eps", seconds["ours"], seconds["theirs"], ratio=1.0, note=peer)


def walk(
    name: str, x: Tensor, noise: Callable[[], Tensor], denoise: Callable[[Tensor, ldm.Level], Tensor]
) -> Callable[[], None]:
    """All steps of one of our samplers; the path is made beforehand."""
    sampler = ldm.sampler(name)
    path = sampler.path(SD1.schedule, STEPS, SD1.spacing, SD1.last)

    def steps() -> None:
        with torch.no_grad():
            for _ in sampler.solve(denoise, x, path, noise):
                pass

    return steps


def walk_peer(name: str, x: Tensor) -> Callable[[], None]:
    """All steps of one of diffusers' schedulers; its tables are made beforehand."""
    import diffusers

    options: dict[str, Any] = BETAS | {"timestep_spacing": "leading", "steps_offset": 1}
    if name in ("DDIMScheduler", "DDPMScheduler"):
        options["clip_sample"] = False
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(STEPS)
    extra = {} if name in ("DDIMScheduler",) else {"generator": torch.Generator().manual_seed(0)}

    def steps() -> None:
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = None  # begin again without making the tables anew
        with torch.no_grad():
            now = x * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                now = scheduler.step(scheduler.scale_model_input(now, t), t, now, **extra).prev_sample

    return steps
