"""What else can be done with a pipeline: walk back from an image, edit it, go from one image to another."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.checks import number, refuse, whole
from ldm.details import NAMES
from ldm.errors import InputError
from ldm.hearing import denoiser
from ldm.noise import Noise
from ldm.pictures import Pictures, refuse_sighted
from ldm.pipeline import Pipeline
from ldm.request import KEYWORDS, MOST_IMAGES, WAYS, read, refuse_unknown
from ldm.result import Result, joined, marked
from ldm.rows import several, shares, silent
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
    **details: Any,
) -> Inverted:
    """The noise from which DDIM, without guidance, draws an image again (see `solvers.inverse`).

    image    as `pipe` takes it
    prompt   what the image shows; None: nothing is said
    rounds   at most so many calls of the network a step; 1 is the usual inversion, which misses
    details  that the image is to be drawn with, such as prompt_weights, clip_skip and tile
    Raises InputError as `pipe` does, and for models that see more than a latent.
    """
    family = pipe.family
    refuse_sighted(family, "inverted")
    refuse(details, "denoising_start", "denoising_end", *(set(KEYWORDS) - set(NAMES)))
    refuse_unknown(set(details) - set(NAMES))
    request = read(
        family, silent(family) if prompt is None else prompt, None, height=height, width=width,
        num_inference_steps=num_inference_steps, guidance_scale=1.0, num_images_per_prompt=1, seed=0,
        chosen=DDIM, strength=None, output_type="pil", ways={}, details=details,
    )  # fmt: skip
    if len(request.seeds) > 1:
        raise InputError(f"prompt must be one, for one image, not {len(request.seeds)}")
    rounds, tolerance = whole("rounds", rounds, 1000), number("tolerance", tolerance, 0, 1)
    pictures = Pictures(image).read(family, request.height, request.width).to(pipe.device)
    if pictures.image is None:
        raise InputError("image is missing; give the picture to invert")
    schedule = family.schedule
    path = request.sampler.path(schedule, request.steps, family.spacing, schedule.at(0))
    denoise = denoiser(pipe, request, Pictures(), Noise(request.seeds, (1, 1, 1)))
    z = pipe.encode(pictures.image, request.details.tile)
    walk = list(solvers.invert(denoise, z, path, rounds=rounds, tolerance=tolerance))
    same = replace(request.sampler, spacing=lambda *_: path, steps=len(path) - 1)
    return Inverted(walk[-1][0], same, [miss for _, miss in walk])


def edit(
    pipe: Pipeline, image: Any, prompt: Any, new_prompt: Any, *, rounds: int = 30, **options: Any
) -> Result:
    """An image with another prompt on the noise that it comes from: what both say alike stays.

    prompt      what the image shows
    new_prompt  what it is to show
    options     as of `pipe`; guidance_scale: 1 keeps most of the image, more shows more of the new prompt
    Raises InputError as `pipe` does.
    """
    refuse(options, "sampler", "latents", "image", "mask_image", "num_images_per_prompt", "strength", *WAYS)
    details: dict[str, Any] = {name: options[name] for name in NAMES if name in options}
    found = invert(
        pipe, image, prompt, height=options.get("height"), width=options.get("width"),
        num_inference_steps=options.get("num_inference_steps"), rounds=rounds, **details,
    )  # fmt: skip
    options = {"guidance_scale": 1.0} | options | {"num_inference_steps": None}
    return marked(pipe(new_prompt, latents=found.latents, sampler=found.sampler, **options), task="edit")


def interpolate(
    pipe: Pipeline, prompt: Any, seeds: Any, frames: int = 16, *, batch: int = 4, **options: Any
) -> Result:
    """A sequence of images from one prompt's or seed's to another's; `ldm.animate` makes a moving picture.

    Tokens and noises, also those of every step, go along great circles (`circle.slerp`). The first and the
    last image are what `pipe` draws of the first prompt and seed, and of the last; prompts of unlike length,
    in chunks, jump a little there, for on the way the shorter one is filled up.
    prompt   one, or two to go from and to
    seeds    one, or two
    frames   how many, 2 to 1024; batch: how many are drawn together
    options  as of `pipe`
    Raises InputError as `pipe` does.
    """
    decided = ("seed", "latents", "image", "mask_image", "num_images_per_prompt", "record")
    refuse(options, *decided, *WAYS)
    frames, batch = whole("frames", frames, 1024, least=2), whole("batch", batch, 1024)
    (here, there), (first, last) = ends("prompt", prompt), ends("seeds", seeds)
    rows = torch.linspace(0, 1, frames, device="cpu").tolist()
    done = []
    for some in (rows[i : i + batch] for i in range(0, frames, batch)):
        count = len(some)
        ways: dict[str, Any] = {} if here == there else {"blend_prompt": there, "blend": some}
        if first != last:
            ways |= {"variation_seed": [last] * count, "variation_strength": some}
        done.append(pipe(here, seed=[first] * count, num_images_per_prompt=count, **ways, **options))
    return joined(done)


def vary(
    pipe: Pipeline,
    prompt: Any,
    seed: int,
    number: int = 4,
    variation_strength: float = 0.2,
    *,
    variation_seed: Any = None,
    **options: Any,
) -> Result:
    """Images like the one that `pipe(prompt, seed=seed)` draws: their noise is on its way to other seeds'.

    number    of images
    variation_strength  how far, 0 (the same image) to 1 (that of the other seed)
    variation_seed      of the first, the next ones follow; None: drawn afresh
    options   as of `pipe`; with image=…, variations of what is drawn from that
    Raises InputError as `pipe` does.
    """
    refuse(options, "seed", "num_images_per_prompt", "latents")
    count = whole("number", number, MOST_IMAGES)
    seeds = [whole("seed", seed, 2**63 - 1, least=0)] * count
    ways = {
        "variation_seed": variation_seed,
        "variation_strength": shares("variation_strength", variation_strength, count),
    }
    return pipe(prompt, seed=seeds, num_images_per_prompt=count, **ways, **options)


def ends(name: str, value: Any) -> tuple[Any, Any]:
    """Where a way begins and ends: two things, or one that stays."""
    found = several(value)
    if found is None:
        return value, value
    if len(found) != 2:
        raise InputError(f"{name} must be one, or two to go from and to, not {len(found)}")
    return found[0], found[1]
