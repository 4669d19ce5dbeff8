"""A solver's own work: steps on a latent [1 4 64 64] with a denoiser that costs nothing, on one thread.

First alone, with noise given, where the goal is a time. Then with all that diffusers' schedulers do in `step`
(x0 from the network's eps, noise drawn from a generator), where the goal is a ratio.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ldm
from benchmarks.table import Row
from benchmarks.timing import medians, threads
from ldm.families import SD1
from ldm.schedulers.reverse import Draw, Motion
from ldm.schedulers.samplers import SAMPLERS

SHAPE = (4, 64, 64)
STEPS = 50
ROUNDS = 31
GOAL = 60e-6  # seconds a step

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}


class Peer(NamedTuple):
    """The scheduler of diffusers that does what a sampler of ours does."""

    name: str
    options: dict[str, Any] = LEADING
    draws: bool = False  # whether its `step` takes a generator
    needs: str = "diffusers"  # to be installed


PEERS = {
    "ddim": Peer("DDIMScheduler", LEADING | {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": Peer("DDPMScheduler", LEADING | {"clip_sample": False}, draws=True),
    "euler": Peer("EulerDiscreteScheduler"),
    "euler_ancestral": Peer("EulerAncestralDiscreteScheduler", draws=True),
    "heun": Peer("HeunDiscreteScheduler"),
    "lms": Peer("LMSDiscreteScheduler"),
    "plms": Peer("PNDMScheduler", LEADING | {"skip_prk_steps": True}),
    "dpm_2": Peer("KDPM2DiscreteScheduler"),
    "dpmpp_2m": Peer("DPMSolverMultistepScheduler"),
    "dpmpp_2m_sde": Peer(
        "DPMSolverMultistepScheduler", LEADING | {"algorithm_type": "sde-dpmsolver++"}, draws=True
    ),
    "dpmpp_sde": Peer("DPMSolverSDEScheduler", LEADING | {"noise_sampler_seed": [1]}, needs="torchsde"),
    "uni_pc": Peer("UniPCMultistepScheduler"),
    "lcm": Peer("LCMScheduler", {}, draws=True),
}


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
    """The same solvers with x0 read from eps and noise drawn, as diffusers' `step` does.

    Fresh noise on both sides, Brownian motion where the peer has it. A step is one of the path, however often
    the network is asked in it.
    """
    x = ldm.Noise([0], SHAPE)()
    for name, peer in PEERS.items():
        what = f"solver {name}, a step from eps"
        if find_spec(peer.needs) is None:
            yield Row(what, None, note=f"{peer.name} needs {peer.needs}, which is not installed")
            continue
        brownian = peer.needs == "torchsde"
        noise = ldm.Brownian([1], SHAPE, *SD1.schedule.lams) if brownian else ldm.Noise([1], SHAPE)
        contestants = {
            "ours": walk(name, x, noise, lambda x, level: ldm.EPS.x0(x, x, level)),
            "theirs": walk_peer(peer, x),
        }
        seconds = {who: value / STEPS for who, value in medians(contestants, ROUNDS).items()}
        note = f"{peer.name}, Brownian motion on both sides" if brownian else peer.name
        yield Row(what, seconds["ours"], seconds["theirs"], ratio=1.0, note=note)


def walk(
    name: str, x: Tensor, noise: Draw | Motion, denoise: Callable[[Tensor, ldm.Level], Tensor]
) -> Callable[[], None]:
    """All steps of one of our samplers; the path is made beforehand."""
    sampler = ldm.sampler(name)
    path = sampler.path(SD1.schedule, STEPS, SD1.spacing, SD1.last)

    def steps() -> None:
        with torch.no_grad():
            for _ in sampler.solve(denoise, x, path, noise):
                pass

    return steps


def walk_peer(peer: Peer, x: Tensor) -> Callable[[], None]:
    """All steps of one of diffusers' schedulers; its tables are made beforehand."""
    import diffusers

    scheduler = getattr(diffusers, peer.name)(**BETAS, **peer.options)
    scheduler.set_timesteps(STEPS)
    begun = dict(vars(scheduler))
    extra = {"generator": torch.Generator().manual_seed(0)} if peer.draws else {}

    def steps() -> None:
        for key, value in begun.items():  # begin again without making the tables anew
            setattr(scheduler, key, value.copy() if isinstance(value, list) else value)
        with torch.no_grad():
            now = x * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                now = scheduler.step(scheduler.scale_model_input(now, t), t, now, **extra).prev_sample

    return steps
