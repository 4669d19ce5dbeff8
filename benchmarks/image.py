"""One picture by the model in the package, at its default steps, on one thread, from prompt to PIL image.

The peer is diffusers' pipeline on the same folder, from the same start noise. How far they differ is told.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import ldm
from benchmarks.table import Row
from benchmarks.timing import medians, threads
from ldm.checkpoint.load import bundled

PROMPT = "a small red star on a navy background"
ROUNDS = 9
GOAL = 1.0  # seconds


def rows() -> Iterator[Row]:
    """The time of one picture, with diffusers' pipeline as the peer."""
    pipe, peer = ldm.load(), diffusers_pipeline()
    family = pipe.family
    side = family.size // family.vae.factor
    start = ldm.Noise([0], (family.vae.latent_channels, side, side))()
    settings: dict[str, Any] = {"num_inference_steps": family.steps, "guidance_scale": family.guidance}
    contestants: dict[str, Callable[[], Any]] = {
        "ours": lambda: pipe(PROMPT, latents=start, sampler="ddim", progress=False)[0],
        "theirs": lambda: peer(PROMPT, latents=start, **settings).images[0],
    }
    with threads(1):
        ours, theirs = (np.asarray(picture(), dtype=int) for picture in contestants.values())
        seconds = medians(contestants, ROUNDS)
    apart = f"{abs(ours - theirs).max()} of 255 from StableDiffusionPipeline's"
    note = f"ddim, {family.steps} steps, guidance {family.guidance:g}, 1 thread; pixels at most {apart}"
    yield Row("a picture by the bundled model", seconds["ours"], seconds["theirs"], most=GOAL, note=note)


def diffusers_pipeline() -> Any:
    """diffusers' pipeline on the bundled folder."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    pipe = StableDiffusionPipeline.from_pretrained(
        bundled(), torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
