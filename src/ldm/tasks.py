"""What else can be done with a pipeline: walk back from an image, edit it, go from one image to another."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.checks import refuse, whole
from ldm.errors import InputError
from ldm.hearing import denoiser
from ldm.noise import Noise
from ldm.pictures import Pictures
from ldm.pipeline import Pipeline
from ldm.request import MOST_IMAGES, Request, read
from ldm.result import Result, joined
from ldm.schedulers import Sampler, solvers

DDIM = "ddim"


class Inverted(NamedTuple):
    """The noise that an image comes from, and how well it does."""

    latents: Tensor  # [1 c h w], for `pipe(prompt, latents=…, sampler=…)`
    sampler: Sampler  # DDIM on the path that was walked back
    misses: list[float]  # relative, of each step, from image to noise


@torch.no_grad()
def invert(
    pipe: Pipeline,
    image: Any,
    prompt: Any = None,
    *,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    rounds: int = 30,
    tolerance: float = 1e-5,
) -> Inverted:
    """The noise from which DDIM, without guidance, draws an image again (see `solvers.inverse`).

    image   as `pipe` takes it
    prompt  what the image shows; None: nothing is said
    rounds  at most so many calls of the network a step; 1 is the usual inversion, which misses
    Raises InputError as `pipe` does, and for models that see more than a latent.
    """
    family = pipe.family
    if family.beside or family.unet.labels:
        raise InputError(f"{family.name} sees more than a latent, and is not inverted; use an ordinary model")
    if prompt is None and family.texts:
        prompt = ""
    sizes = {"height": height, "width": width, "num_inference_steps": num_inference_steps}
    request = asked(pipe, prompt, sizes)
    pictures = Pictures(image).read(family, request.height, request.width).to(pipe.device)
    if pictures.image is None:
        raise InputError("image is missing; give the picture to invert")
    schedule = family.schedule
    path = request.sampler.path(schedule, request.steps, family.spacing, schedule.at(0))
    denoise = denoiser(pipe, request, Pictures(), Noise(request.seeds, (1, 1, 1)))
    rounds = whole("rounds", rounds, 1000)
    walk = list(
        solvers.invert(denoise, pipe.encode(pictures.image), path, rounds=rounds, tolerance=tolerance)
    )
    same = replace(request.sampler, spacing=lambda *_: path, steps=len(path) - 1)
    return Inverted(walk[-1][0], same, [miss for _, miss in walk])


def asked(pipe: Pipeline, prompt: Any, options: Mapping[str, Any]) -> Request:
    """A request for one image without guidance, of the size and steps among the options."""
    sizes = {name: options.get(name) for name in ("height", "width", "num_inference_steps")}
    return read(
        pipe.family, prompt, None, **sizes, guidance_scale=1.0, num_images_per_prompt=1, seed=0,
        chosen=DDIM, strength=None, output_type="pil", ways={}, details={},
    )  # fmt: skip


def edit(
    pipe: Pipeline, image: Any, prompt: Any, new_prompt: Any, *, rounds: int = 30, **options: Any
) -> Result:
    """An image with another prompt on the noise that it comes from: what both say alike stays.

    prompt      what the image shows
    new_prompt  what it is to show
    options     as of `pipe`; guidance_scale: 1 keeps most of the image, more shows more of the new prompt
    Raises InputError as `pipe` does.
    """
    refuse(options, "sampler", "latents", "image", "mask_image", "num_images_per_prompt")
    found = invert(
        pipe, image, prompt, height=options.get("height"), width=options.get("width"),
        num_inference_steps=options.get("num_inference_steps"), rounds=rounds,
    )  # fmt: skip
    options = {"guidance_scale": 1.0} | options | {"num_inference_steps": None}
    return pipe(new_prompt, latents=found.latents, sampler=found.sampler, **options)


def interpolate(
    pipe: Pipeline, prompt: Any, seeds: Any, frames: int = 16, *, batch: int = 4, **options: Any
) -> Result:
    """A sequence of images from one prompt's or seed's to another's; `ldm.animate` makes a moving picture.

    Tokens and noises, also those of every step, go along great circles (`circle.slerp`). The first and the
    last image are what `pipe` draws of the first prompt and seed, and of the last.
    prompt   one, or two to go from and to
    seeds    one, or two
    frames   how many, 2 to 1024; batch: how many are drawn together
    options  as of `pipe`
    Raises InputError as `pipe` does.
    """
    decided = ("seed", "latents", "image", "mask_image", "num_images_per_prompt", "record")
    refuse(options, *decided, "variation_seed", "variation_strength", "blend_prompt", "blend")
    frames, batch = whole("frames", frames, 1024, least=2), whole("batch", batch, 1024)
    (here, there), (first, last) = ends("prompt", prompt), ends("seeds", seeds)
    rows = torch.linspace(0, 1, frames, device="cpu").tolist()
    done = []
    for shares in (rows[i : i + batch] for i in range(0, frames, batch)):
        count = len(shares)
        ways: dict[str, Any] = {} if here == there else {"blend_prompt": there, "blend": shares}
        if first != last:
            ways |= {"variation_seed": [last] * count, "variation_strength": shares}
        done.append(pipe(here, seed=[first] * count, num_images_per_prompt=count, **ways, **options))
    return joined(done)


def vary(
    pipe: Pipeline,
    prompt: Any,
    seed: int,
    number: int = 4,
    strength: float = 0.2,
    *,
    variation_seed: Any = None,
    **options: Any,
) -> Result:
    """Images like the one that `pipe(prompt, seed=seed)` draws: their noise is on its way to other seeds'.

    number    of images
    strength  how far, 0 (the same image) to 1 (that of the other seed)
    variation_seed  of the first, the next ones follow; None: drawn afresh
    options   as of `pipe`; with image=…, variations of what is drawn from that
    Raises InputError as `pipe` does.
    """
    refuse(options, "seed", "variation_strength", "num_images_per_prompt", "latents")
    count = whole("number", number, MOST_IMAGES)
    seeds = [whole("seed", seed, 2**63 - 1, least=0)] * count
    ways = {"variation_seed": variation_seed, "variation_strength": strength}
    return pipe(prompt, seed=seeds, num_images_per_prompt=count, **ways, **options)


def ends(name: str, value: Any) -> tuple[Any, Any]:
    """Where a way begins and ends: two things, or one that stays."""
    if not isinstance(value, (tuple, list)):
        return value, value
    if len(value) != 2:
        raise InputError(f"{name} must be one, or two to go from and to, not {len(value)}")
    return value[0], value[1]
