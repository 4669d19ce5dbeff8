"""A noisy picture cleaned: its noise is measured, and the reverse process begun at the level that has it.

    y = x + s n                 the picture and its noise, s measured from y alone
    z_y = z + r eps             what the encoder makes of both; r measured by adding as much noise again
    alpha z_y, sigma / alpha = r        is a point of the process, from which DDIM goes on to x'
    x̂ = y + min(1, s² / mean |y - x'|²) (x' - y)        (James & Stein 1961)

The last line takes from the noisy picture what it knows better than the model: where the autoencoder misses
by more than the noise, little is changed.
"""

from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.checks import number, one_of, refuse, whole
from ldm.errors import InputError
from ldm.noise import Noise
from ldm.pictures import as_it_is, refuse_sighted
from ldm.pipeline import Pipeline
from ldm.request import OUTPUTS, WAYS, size
from ldm.result import Result, changed, marked
from ldm.rows import silent
from ldm.schedulers import Schedule, sampler

STRAIGHT = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))  # blind to planes and edges; of gain 6
MEDIAN = 0.6745  # of |n|, n a unit normal


@torch.no_grad()
def denoise(
    pipe: Pipeline,
    image: Any,
    prompt: Any = None,
    *,
    noise_std: float | None = None,
    num_inference_steps: int = 10,
    **options: Any,
) -> Result:
    """A noisy picture without its noise; `parameters["noise_std"]` tells how much there was.

    image      as `pipe` takes it, of the size that it has, with white noise
    prompt     what it shows; None: nothing is said
    noise_std  of the noise, in the units of images in [-1, 1]; None: measured (`noise_of`)
    options    as of `pipe`; guidance is off
    The result's latents are those of the model's picture x', before y is asked.
    Raises InputError as `pipe` does, and for models that see more than a latent.
    """
    decided = ("image", "mask_image", "latents", "sampler", "strength", "seed", "num_images_per_prompt")
    refuse(options, *decided, "height", "width", *WAYS)
    family = pipe.family
    refuse_sighted(family, "used to denoise")
    steps = whole("num_inference_steps", num_inference_steps, 1000)
    output = one_of("output_type", options.pop("output_type", "pil"), OUTPUTS)
    prompt = silent(family) if prompt is None else prompt
    if isinstance(prompt, (list, tuple)):
        raise InputError("prompt must be one, for one image, not a list")
    y, tile = as_it_is(image).to(pipe.device), options.get("tile") or 0
    *_, h, w = y.shape
    size(family, h, w)
    s = noise_of(y) if noise_std is None else number("noise_std", noise_std, 0, 2)
    n = Noise([0], (3, h, w), pipe.device)()
    z = pipe.encode(y, tile)
    r = float((pipe.encode((y + s * n).clamp(-1, 1), tile) - z).std())
    first, times = begun(family.schedule, r, steps)
    options = {"guidance_scale": 1.0} | options
    found = pipe(
        prompt, latents=first * z, height=h, width=w, seed=0,
        sampler=sampler("euler", timesteps=times), output_type="latent", **options,
    )  # fmt: skip
    if output == "latent":
        return marked(found, task="denoise", noise_std=s)
    x = pipe.decode(found.latents, tile)
    x = torch.lerp(y, x, min(1.0, s**2 / max(float((y - x).square().mean()), 1e-12)))
    return changed(found, x, output, task="denoise", noise_std=s)


def noise_of(y: Tensor) -> float:
    """The standard deviation of white noise in images [b 3 H W], in their units.

    From what a filter that is blind to planes and edges leaves (Immerkær 1996, eq. 2), by the median, which
    textures hardly move (Donoho & Johnstone 1994).
    """
    weight = torch.tensor(STRAIGHT, dtype=y.dtype, device=y.device)[None, None]
    left = F.conv2d(y.reshape(-1, 1, *y.shape[-2:]), weight)
    return float(left.abs().median()) / (6 * MEDIAN)


def begun(schedule: Schedule, r: float, steps: int) -> tuple[float, list[float]]:
    """alpha of the level with noise over signal r, or the nearest there is; and times from there down."""
    low, high = schedule.at(1).ratio, schedule.at(schedule.steps - 2).ratio
    first = schedule.at_lam(-log(min(max(r, low), high)))
    return first.alpha, [first.t * (1 - i / steps) for i in range(steps)]
