"""What a model's UNet hears and sees for a request; with it, the denoiser that solvers are handed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.checks import texts
from ldm.coding import encode
from ldm.conditioning import Conditioning, blended, encode_classes, tell
from ldm.denoiser import Denoiser, Guidance, grouped
from ldm.details import Details
from ldm.model import Model
from ldm.noise import Draws
from ldm.pictures import Pictures
from ldm.prompts import by_length, encode_weighted
from ldm.request import Request
from ldm.rows import hears_classes, some
from ldm.schedulers.solvers import Denoise
from ldm.sight import SEES, Sight
from ldm.watching import watched


def denoiser(
    model: Model, request: Request, pictures: Pictures, noise: Draws, ts: Sequence[float] = ()
) -> Denoise:
    """The function (x, level) -> x0 that solvers are handed; rows of as many chunks are one batch.

    ts  the noise levels that will be asked for, in order, as far as they are known
    """
    seen = beside(model, request, pictures, noise)
    said = [(*row, n) for row, n in zip(request.spoken, request.negatives, strict=True)]
    groups, parts = by_length(model.tokenizers, said, request.details.prompt_weights), []
    for chunks, rows in groups.items():  # apart, so that no image depends on the length of other prompts
        own = None if seen is None else seen[rows]
        parts.append((rows, guided(model, request.part(rows), own, chunks, ts)))
    return grouped(watched(model, request, parts))


def guided(
    model: Model, request: Request, seen: Tensor | None, chunks: int, ts: Sequence[float] = ()
) -> Denoiser:
    """The denoiser of prompts of one length; seen: what the UNet sees beside the latent. [b c h w]"""
    family, told, label, middle = model.family, request.details, None, None
    cond = heard(model, request, chunks) if family.texts else Conditioning()
    uncond = unconditional(model, request, cond, chunks) if request.guidance > 1 else None
    if family.unet.labels:
        label = torch.full((len(request.seeds),), told.noise_level, device=model.device)
    cond = cond._replace(beside=seen, label=label)
    if uncond is not None:
        uncond = uncond._replace(beside=seen, label=label)
        if family.beside == "edit" and seen is not None:
            middle = uncond, told.image_guidance_scale
            uncond = uncond._replace(beside=torch.zeros_like(seen))
    guidance = Guidance(
        request.guidance, told.guidance_rescale, told.guidance_interval, told.dynamic_threshold
    )
    return Denoiser(model.unet, family.prediction, cond, uncond, guidance, middle, ts)


def condition(
    model: Model, prompts: Any, details: Details | None = None, negative: bool = False, chunks: int = 1
) -> Conditioning:
    """What the UNet hears of prompts, texts or classes; each different one is encoded once.

    details   what the vector of SDXL tells; None: a whole picture of the family's size
    negative  whether it is told of what is not wanted: the negative score
    chunks    how many at least a text is cut into or filled up to
    """
    family = model.family
    if hears_classes(family):
        return Conditioning(encode_classes(model.text_encoders[0], some(family, "prompts", prompts)))
    prompts = texts("prompts", prompts)
    rows = list(dict.fromkeys(prompts))
    details = details or Details.of(family.size, family.size)
    context, pooled = encode_weighted(
        model.tokenizers, model.text_encoders, rows, details.prompt_weights, chunks, details.clip_skip
    )
    order = [rows.index(prompt) for prompt in prompts]
    if pooled is None or not family.vector:
        return Conditioning(context[order])
    numbers = details.numbers(family.vector, negative)
    return Conditioning(context[order], tell(pooled[order], numbers, family))


def heard(model: Model, request: Request, chunks: int) -> Conditioning:
    """What the UNet hears of the prompts, and of those that they are blended with."""
    prompts, others = zip(*request.spoken, strict=True)
    cond = condition(model, list(prompts), request.details, chunks=chunks)
    if all(other is None for other in others):
        return cond
    to = [prompt if other is None else other for prompt, other in request.spoken]
    shares = [0.0 if other is None else b.share for other, b in zip(others, request.blends, strict=True)]
    there = condition(model, to, request.details, chunks=chunks)
    return blended(cond, there, shares, model.family.texts[-1].pooled)


def unconditional(model: Model, request: Request, cond: Conditioning, chunks: int) -> Conditioning:
    """What the UNet hears of the negative prompts; where they miss, what the family has instead."""
    family, negatives = model.family, request.negatives
    if None not in negatives:
        return condition(model, negatives, request.details, negative=True, chunks=chunks)
    if (classes := hears_classes(family)) is not None:
        return condition(model, [classes.empty] * len(negatives))
    if not family.blank or cond.context is None or cond.vector is None:
        empty = [""] * len(negatives)
        return condition(model, empty, request.details, negative=True, chunks=chunks)
    pooled = torch.zeros_like(cond.vector[:, : family.texts[-1].pooled])
    numbers = request.details.numbers(family.vector)
    return Conditioning(torch.zeros_like(cond.context), tell(pooled, numbers, family))


def beside(model: Model, request: Request, pictures: Pictures, noise: Draws) -> Tensor | None:
    """What the UNet sees beside the latent, for each image. [b c h w]"""
    family, factor = model.family, model.family.vae.factor
    if not family.beside:
        return None
    size = (request.height // factor, request.width // factor)
    level = family.schedule.at(request.details.noise_level)

    def encoded(images: Tensor) -> Tensor:
        return encode(model, images, request.details.tile)

    seen = SEES[family.beside](Sight(*pictures, size, family, encoded, noise, level))
    return seen.expand(len(request.seeds), -1, -1, -1)
