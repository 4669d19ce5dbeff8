"""What else can be done with a pipeline: walk back from an image, edit it, go from one image to another."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.checks import whole
from ldm.errors import InputError
from ldm.noise import Noise
from ldm.pictures import Pictures
from ldm.pipeline import Pipeline
from ldm.request import Request, read
from ldm.result import Result
from ldm.schedulers import Sampler, sampler, solvers

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
    denoise = pipe.denoiser(request, Pictures(), Noise(request.seeds, (1, 1, 1)))
    rounds = whole("rounds", rounds, 1000)
    walk = list(
        solvers.invert(denoise, pipe.encode(pictures.image), path, rounds=rounds, tolerance=tolerance)
    )
    same = replace(request.sampler, spacing=lambda *_: path, steps=len(path) - 1)
    return Inverted(walk[-1][0], same, [miss for _, miss in walk])


def asked(pipe: Pipeline, prompt: Any, options: Mapping[str, Any], chosen: Any = DDIM) -> Request:
    """A request for one image without guidance, of the size and steps among the options."""
    sizes = {name: options.get(name) for name in ("height", "width", "num_inference_steps")}
    return read(
        pipe.family, prompt, None, **sizes, guidance_scale=1.0, num_images_per_prompt=1, seed=0,
        chosen=chosen, strength=None, output_type="pil", details={},
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
    pipe: Pipeline, prompt: Any, seeds: tuple[int, int], frames: int = 16, **options: Any
) -> Result:
    """A sequence of images from one seed's to another's, on the great circle between their noises.

    The first and the last are what `pipe(prompt, seed=…)` draws; `ldm.animate` makes a moving picture. Where
    the family's sampler draws fresh noise at every step, and no other is given, all are drawn by ddim.
    frames   how many, 2 to 1024
    options  as of `pipe`
    Raises InputError as `pipe` does, and for samplers that draw fresh noise, which has no way between.
    """
    refuse(options, "seed", "latents", "image", "mask_image", "num_images_per_prompt")
    frames = whole("frames", frames, 1024, least=2)
    if not isinstance(seeds, (tuple, list)) or len(seeds) != 2:
        raise InputError("seeds must be two whole numbers, of the first and the last image")
    if not isinstance(prompt, str):
        raise InputError("prompt must be one str")
    if options.get("sampler") is None and sampler(pipe.family.sampler).eta:
        options["sampler"] = DDIM
    request = asked(pipe, prompt, options, options.get("sampler"))
    if request.sampler.eta:
        raise InputError(f"{request.sampler.name} draws fresh noise; take ddim or another that does not")
    factor = pipe.family.vae.factor
    shape = (pipe.family.vae.latent_channels, request.height // factor, request.width // factor)
    a, b = Noise([whole("seeds", seed, 2**63 - 1, least=0) for seed in seeds], shape)()
    shares = torch.linspace(0, 1, frames, device="cpu").tolist()
    latents = torch.stack([slerp(a, b, share) for share in shares])
    return pipe([prompt] * frames, latents=latents, **options)


def refuse(options: dict[str, Any], *names: str) -> None:
    """Raises InputError for options that a task decides itself."""
    for name in names:
        if name in options:
            raise InputError(f"{name} is decided by the task itself; leave it out")


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point at a share of the way from a to b on the great circle (Shoemake 1985); lengths go along."""
    if share in (0, 1):
        return b if share else a
    long_a, long_b = a.norm(), b.norm()
    angle = torch.arccos(((a / long_a) * (b / long_b)).sum().clamp(-1, 1))
    if angle.sin() < 1e-4:
        return torch.lerp(a, b, share)
    way = torch.sin((1 - share) * angle) * a / long_a + torch.sin(share * angle) * b / long_b
    return way / angle.sin() * torch.lerp(long_a, long_b, share)
