"""The diffusion model as it is trained: batch -> the loss of each image (Rombach et al. 2022, eq. 2 and 3).

z ~ q(z | x),  eps ~ N(0, I),  t ~ U,  c = text(caption), or with a small probability nothing

loss = w(t) |unet(alpha_t z + sigma_t eps, t, c) - target(z, eps, t)|²
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checks import number, one_of, whole
from ldm.conditioning import encode_classes, tell
from ldm.details import Details
from ldm.errors import InputError
from ldm.family import Family
from ldm.model import Model
from ldm.prompts import encode_weighted
from ldm.rows import hears_classes, some
from ldm.schedulers import EPS, X0, V
from ldm.schedulers.spacing import trailing
from ldm.training.cache import Texts, posterior, sample
from ldm.training.data import Batch
from ldm.training.draws import dropped, logit_normal, of_rows, offset, times
from ldm.training.losses import Weight, debiased, diffusion_loss, min_snr, p2, truncated_snr, uniform
from ldm.training.settings import DiffusionSettings

WEIGHTS: dict[str, Weight] = {
    "uniform": uniform,
    "min_snr": min_snr,
    "truncated_snr": truncated_snr,
    "p2": p2,
    "debiased": debiased,
}
PREDICTIONS = {each.name: each for each in (EPS, V, X0)}
TIMES = ("uniform", "stratified", "logit_normal")
MOST_CHUNKS = 64


class Diffusion(nn.Module):
    """diffusion(batch, rows) -> the loss of each image, float32 [b].

    model     whose UNet, and perhaps text encoders, are trained: those parameters that require gradients
    settings  what is drawn, and how it is weighed
    texts     remembered features of frozen text encoders; None: they are computed

    batch     of images, or of the moments of their latents where `Batches` has made=Latents
    rows      the images' numbers in the endless row of the run: what is drawn depends on them and the seed
    Raises InputError for prompts of another kind than the model hears, or none.
    """

    def __init__(self, model: Model, settings: DiffusionSettings, texts: Texts | None = None):
        super().__init__()
        self.unet, self.text_encoders = model.unet, nn.ModuleList(model.text_encoders)
        self.model, self.settings, self.texts = model, settings, texts
        check_drawn(settings)
        weight = WEIGHTS[settings.weighting]
        self.weight = partial(min_snr, gamma=settings.gamma) if weight is min_snr else weight
        self.joint = any(p.requires_grad for p in self.text_encoders.parameters())
        check_trainable(model.family)
        classes = hears_classes(model.family)
        if classes and classes.empty is None and settings.drop:
            raise InputError(f"{model.family.name} has no class that stands for none; give drop=0")

    def forward(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        settings, family, device = self.settings, self.model.family, self.model.device
        moments = self.moments(batch)
        shape = moments.shape[1] // 2, *moments.shape[2:]
        u, (eps_z, eps, shift) = of_rows(settings.seed, rows, 2, shape, shape, shape[:1])
        eps = offset(eps, shift, settings.offset) if settings.offset else eps
        x0, eps = sample(moments, eps_z.to(device)), eps.to(device, non_blocking=True)
        t = times(self.law(u[:, 0], rows) ** settings.power, family.schedule)
        with self.autocast():
            context, vector = self.heard(batch, dropped(u[:, 1], settings.drop))
            predict = partial(self.unet, context=context, vector=vector)
            return diffusion_loss(predict, x0, eps, t, family.schedule, family.prediction, self.weight)

    def at(self, batch: Batch, rows: Sequence[int], t: Tensor) -> Tensor:
        """The unweighted loss of each image [b] at given steps t [b], with its text."""
        moments, family, device = self.moments(batch), self.model.family, self.model.device
        shape = moments.shape[1] // 2, *moments.shape[2:]
        _, (eps,) = of_rows(self.settings.seed, rows, 1, shape)
        with torch.no_grad(), self.autocast():
            context, vector = self.heard(batch, torch.zeros(len(rows), dtype=torch.bool))
            predict = partial(self.unet, context=context, vector=vector)
            x0 = moments.chunk(2, dim=1)[0]
            return diffusion_loss(predict, x0, eps.to(device), t, family.schedule, family.prediction)

    def moments(self, batch: Batch) -> Tensor:
        """Mean and deviation of the latents, scaled. [b 2c h w]"""
        if batch.images.shape[1] == 2 * self.model.family.vae.latent_channels:
            return batch.images.to(self.model.device, non_blocking=True)
        return posterior(self.model, batch.images)

    def law(self, u: Tensor, rows: Sequence[int]) -> Tensor:
        """What steps t are drawn by: numbers [b] in [0, 1], of uniform ones.

        Stratified: frac(u + i / b) for image i of a step, u its first one's (Kingma et al. 2021, app. I.1).
        """
        if self.settings.times == "logit_normal":
            return logit_normal(u)
        if self.settings.times == "uniform":
            return u
        size = self.settings.batch
        firsts = [row // size * size for row in rows]
        common = {first: of_rows(self.settings.seed, [first], 1)[0].squeeze() for first in set(firsts)}
        shares = [common[first] + (row - first) / size for row, first in zip(rows, firsts, strict=True)]
        return torch.stack(shares) % 1.0

    def heard(self, batch: Batch, silent: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The context [b m c'] and SDXL's vector [b c''] of a batch; of those that are silent, of nothing."""
        family, quiet = self.model.family, silent.tolist()
        prompts: list[Any] = [spoken(family, *each) for each in zip(batch.prompts, batch.names, strict=True)]
        if not family.texts:
            return None, None
        if classes := hears_classes(family):
            numbers = [classes.empty if q else prompt for prompt, q in zip(prompts, quiet, strict=True)]
            return encode_classes(self.model.text_encoders[0], numbers), None
        context, pooled = self.encoded(
            ["" if q else prompt for prompt, q in zip(prompts, quiet, strict=True)]
        )
        if pooled is None or not family.vector:
            return context, None
        if family.blank:
            speaks = (~silent).to(context.device)
            context, pooled = context * speaks[:, None, None], pooled * speaks[:, None]
        size = [side * family.vae.factor for side in self.latent_size(batch)]
        each = [
            Details(original, corner, (size[0], size[1])).numbers(family.vector)
            for original, corner in zip(batch.originals, batch.corners, strict=True)
        ]
        told = [tell(one[None], numbers, family) for one, numbers in zip(pooled, each, strict=True)]
        return context, torch.cat(told)

    def latent_size(self, batch: Batch) -> tuple[int, int]:
        """Height and width of the latents of a batch."""
        h, w = batch.images.shape[2:]
        latent = batch.images.shape[1] == 2 * self.model.family.vae.latent_channels
        return (h, w) if latent else (h // self.model.family.vae.factor, w // self.model.family.vae.factor)

    def encoded(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Hidden states of texts, and the pooled text where there is one."""
        device, chunks = self.model.device, self.settings.chunks
        if self.texts is not None:
            with torch.autocast(device.type, enabled=False):  # what is remembered is of the weights' own type
                context, pooled = self.texts(prompts)
            return context.to(device), pooled if pooled is None else pooled.to(device)
        with nullcontext() if self.joint else torch.no_grad():
            return encode_weighted(
                self.model.tokenizers, self.model.text_encoders, prompts, False, chunks, most=chunks
            )

    def autocast(self) -> AbstractContextManager:
        """bfloat16 where that is asked for."""
        on = self.settings.precision == "bf16"
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=on)


def check_drawn(settings: DiffusionSettings) -> None:
    """Raises InputError for what makes no sense whatever the model, naming the field."""
    one_of("weighting", settings.weighting, tuple(WEIGHTS))
    one_of("prediction", settings.prediction or EPS.name, tuple(PREDICTIONS))
    one_of("times", settings.times, TIMES)
    number("power", settings.power, 0.01, 100)
    number("gamma", settings.gamma, 0, 1e6)
    for name in ("drop", "offset"):
        number(name, getattr(settings, name), 0, 1)
    whole("chunks", settings.chunks, MOST_CHUNKS)


def spoken(family: Family, prompt: Any, name: str) -> Any:
    """A prompt that a model can be told. Raises InputError, naming the image."""
    if not family.texts:
        return None
    if prompt is None:
        raise InputError(f"{name} has no caption, but {family.name} hears one; write captions, or classes")
    return some(family, f"the caption of {name}", prompt)[0]


def check_trainable(family: Family) -> None:
    """Raises InputError for a model that sees more than a latent and a text."""
    if family.beside or family.unet.labels:
        raise InputError(f"{family.name} sees pictures beside the latent; train a text to image model")


def changed(family: Family, settings: DiffusionSettings) -> Family:
    """The family as it is after training with other targets, schedule or size. Raises InputError."""
    if settings.prediction:
        family = replace(family, prediction=PREDICTIONS[settings.prediction])
    if settings.zero_snr:  # sampling must begin where there is no signal (Lin et al. 2024, sec. 3.3)
        family = replace(family, schedule=replace(family.schedule, zero_snr=True), spacing=trailing)
    if settings.data.size:
        family = replace(family, size=settings.data.size)
    if family.schedule.zero_snr and family.prediction is EPS:
        raise InputError("eps says nothing of x0 where there is no signal; give prediction=v with zero_snr")
    return family
