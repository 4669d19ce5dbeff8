"""Larger pictures: beyond their edges, more pixels of them, and two passes where one would repeat itself."""

from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.checks import number, one_of, refuse, whole
from ldm.errors import InputError
from ldm.pictures import as_it_is, enlarges
from ldm.pipeline import Pipeline
from ldm.request import MOST_SIDE, OUTPUTS, WAYS, share, size
from ldm.result import Result, changed, joined, marked, parted
from ldm.rows import silent
from ldm.schedulers import sampler

ROUNDS = 10  # of projecting back
SIZES = ("height", "width")


def outpaint(
    pipe: Pipeline,
    image: Any,
    prompt: Any,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    **options: Any,
) -> Result:
    """A picture with more around it; its own pixels stay as they are.

    image    as `pipe` takes it, of the size that it has
    prompt   what all of it is to show; None for models that hear none
    left, …  pixels to add; the sides that come out are multiples of `family.unit`
    options  as of `pipe`; strength is 1
    Raises InputError as `pipe` does.
    """
    refuse(options, "image", "mask_image", "strength", *SIZES)
    added = {"left": left, "right": right, "top": top, "bottom": bottom}
    edges = [whole(name, value, MOST_SIDE, least=0) for name, value in added.items()]
    if not any(edges):
        raise InputError("nothing is added; give left, right, top or bottom in pixels")
    x = as_it_is(image)
    *_, h, w = x.shape
    height, width = size(pipe.family, h + top + bottom, w + left + right).values()
    canvas = F.pad(x, edges, mode="replicate")
    mask = F.pad(torch.zeros_like(x[:, :1]), edges, value=1.0)
    found = pipe(
        prompt,
        image=canvas,
        mask_image=mask,
        height=height,
        width=width,
        strength=1.0,
        **options,
    )
    return marked(found, task="outpaint", **added)


@torch.no_grad()
def upscale(
    pipe: Pipeline,
    image: Any,
    prompt: Any = None,
    *,
    scale: int | None = None,
    strength: float = 0.15,
    **options: Any,
) -> Result:
    """A picture with more pixels that still is the picture: the means of its squares are the small one's.

    Models made for it (`sd-x4-upscaler`, `ldm-sr`) do it themselves, four times. Others draw details over a
    bicubic enlargement (image to image), and what they changed in the means is taken back (`consistent`).
    image     as `pipe` takes it, of the size that it has
    prompt    what it shows; None: nothing is said
    scale     2 to 8, by default 2, or what the model is made for
    strength  of image to image: how much may be drawn anew
    options   as of `pipe`
    A picture made small by taking every n-th pixel has other means, and is held to what it is: jagged.
    The result's latents are those that were decoded, before anything was taken back.
    Raises InputError as `pipe` does.
    """
    refuse(options, "image", "mask_image", "latents", *SIZES)
    prompt = silent(pipe.family) if prompt is None else prompt
    if enlarges(pipe.family):
        made_for = pipe.family.vae.factor
        if whole("scale", scale, made_for, made_for, least=2) != made_for:
            raise InputError(f"{pipe.family.name} enlarges {made_for} times, not {scale}; leave scale out")
        return pipe(prompt, image=image, **options)
    scale = whole("scale", scale, 8, 2, least=2)
    output = one_of("output_type", options.pop("output_type", "pil"), OUTPUTS[:-1])
    small = as_it_is(image)
    *_, h, w = small.shape
    height, width = size(pipe.family, h * scale, w * scale).values()
    large = F.interpolate(small, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    if pipe.family.steps * share("strength", strength) < 1:  # a turbo's one step is no step then
        options = {"num_inference_steps": ceil(1 / strength)} | options
    if sampler(pipe.family.sampler).eta:
        options = {"sampler": "ddim"} | options  # fresh noise would be drawn over what is known
    drawn = pipe(
        prompt,
        image=large,
        height=height,
        width=width,
        strength=strength,
        output_type="pt",
        **options,
    )
    images = consistent(2 * drawn.images - 1, small.to(drawn.images.device))
    return changed(drawn, images, output, task="upscale", scale=scale)


def consistent(images: Tensor, small: Tensor) -> Tensor:
    """Images [b 3 sH sW] changed as smoothly as it goes until the means of squares are small [1 3 H W].

    The error of the means, enlarged, is added again and again (Irani & Peleg 1991, eq. 2).
    """
    *_, h, w = small.shape
    for _ in range(ROUNDS):
        off = small - F.adaptive_avg_pool2d(images, (h, w))
        images = (images + F.interpolate(off, images.shape[-2:], mode="bicubic")).clamp(-1, 1)
    return images


@torch.no_grad()
def hires(
    pipe: Pipeline,
    prompt: Any,
    negative_prompt: Any = None,
    *,
    scale: float = 2.0,
    strength: float = 0.6,
    seed: Any = None,
    **options: Any,
) -> Result:
    """Larger images than a model was trained for: drawn at the size it knows, enlarged, and drawn over.

    Drawn at once, a large image repeats its subject. What other programs call the "hires fix".
    scale     1 to 8, of the sides, which become multiples of `family.unit`
    strength  of the second pass: low keeps the first image, high may repeat the subject again
    options   as of `pipe`, for both passes; height and width are the first one's
    Raises InputError as `pipe` does.
    """
    refuse(options, "image", "mask_image", "latents", "record")
    scale = number("scale", scale, 1, 8)
    output = one_of("output_type", options.pop("output_type", "pil"), OUTPUTS)
    share("strength", strength)
    unit, given = pipe.family.unit, [options.get(side) for side in SIZES]
    sides = [round(side * scale / unit) * unit for side in size(pipe.family, *given).values()]
    height, width = size(pipe.family, *sides).values()
    first = pipe(prompt, negative_prompt, seed=seed, output_type="pt", **options)
    told = (*SIZES, *WAYS, "num_images_per_prompt")  # by the parameters of each image
    again = {name: value for name, value in options.items() if name not in told}
    large = F.interpolate(first.images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    done = []
    for image, said in zip(2 * large - 1, parted(first.parameters, len(first)), strict=True):
        own = {name: said[name] for name in ("negative_prompt", "seed", *WAYS) if name in said}
        done.append(
            pipe(
                said["prompt"], image=image, height=height, width=width, strength=strength,
                output_type=output, **own, **again,
            )
        )  # fmt: skip
    return marked(joined(done), task="hires", scale=scale)
