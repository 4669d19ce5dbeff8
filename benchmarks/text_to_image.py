"""The peer of training: the loop of diffusers' examples/text_to_image/train_text_to_image.py, in miniature.

It is written anew, with its defaults: accelerate prepares UNet, optimiser, data and rate; images and captions
are read, encoded and drawn for in each step; the gradient is clipped; AdamW is torch's as it comes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.training.folders import Entry

Row = dict[str, Tensor]


class Draws(NamedTuple):
    """What a step draws, where it is to draw what another drew."""

    sample: Tensor  # [b c h w] unit noise, of the latent
    noise: Tensor  # [b c h w]
    t: Tensor  # [b]


class Told(NamedTuple):
    """What there is to tell of a step."""

    loss: float
    norm: float  # of the gradient, before it is clipped


class Pictures(Dataset[Row]):
    """Images of one size with their captions."""

    def __init__(self, entries: list[Entry], tokenizer: Any):
        self.entries, self.tokenizer = entries, tokenizer

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Row:
        entry = self.entries[index]
        with Image.open(entry.path) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        ids = self.tokenizer(
            entry.prompt, max_length=self.tokenizer.model_max_length, padding="max_length", truncation=True,
            return_tensors="pt",
        ).input_ids[0]  # fmt: skip
        return {"pixel_values": pixels.float().div(255).sub(0.5).div(0.5), "input_ids": ids}


def collated(rows: list[Row]) -> Row:
    """Rows as a batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class Recipe:
    """What their loop is told."""

    batch: int
    rate: float
    betas: tuple[float, float]
    decay: float
    clip: float
    fused: bool | None = None  # None: as AdamW comes


class Loop:
    """Their loop, a step at a time. folder: a model in the layout of diffusers."""

    def __init__(self, folder: Path, entries: list[Entry], recipe: Recipe):
        self.recipe, self.accelerator = recipe, Accelerator(cpu=True)
        self.schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        self.text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").requires_grad_(False)
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").requires_grad_(False)
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()
        optimiser = torch.optim.AdamW(
            unet.parameters(), lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.decay,
            fused=recipe.fused,
        )  # fmt: skip
        self.data = Pictures(entries, self.tokenizer)
        loader = DataLoader(self.data, recipe.batch, shuffle=True, collate_fn=collated)
        rate = get_scheduler("constant", optimizer=optimiser)
        self.unet, self.optimiser, self.loader, self.rate = self.accelerator.prepare(
            unet, optimiser, loader, rate
        )
        self.batches = self.endless()

    def endless(self) -> Iterator[Row]:
        """Batches, epoch after epoch."""
        while True:
            yield from self.loader

    def step(self, batch: Row | None = None, draws: Draws | None = None) -> Told:
        """A step, of a batch and draws where they are given."""
        batch = next(self.batches) if batch is None else batch
        with self.accelerator.accumulate(self.unet):
            loss = self.loss(batch, draws)
            mean = self.accelerator.gather(loss.repeat(self.recipe.batch)).mean().item()
            self.accelerator.backward(loss)
            norm = self.accelerator.clip_grad_norm_(self.unet.parameters(), self.recipe.clip)
            self.optimiser.step()
            self.rate.step()
            self.optimiser.zero_grad()
        return Told(mean, float(norm))

    def loss(self, batch: Row, draws: Draws | None) -> Tensor:
        """The loss of a batch."""
        latents, context = self.encoded(batch, draws)
        noise = draws.noise if draws else torch.randn_like(latents)
        last = self.schedule.config.num_train_timesteps
        t = draws.t if draws else torch.randint(0, last, (len(latents),))
        noisy = self.schedule.add_noise(latents, noise, t)
        predicted = self.unet(noisy, t, context, return_dict=False)[0]
        return F.mse_loss(predicted.float(), noise.float(), reduction="mean")

    @torch.no_grad()
    def encoded(self, batch: Row, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Latents and hidden states of the captions: what the frozen networks make of a batch."""
        posterior = self.vae.encode(batch["pixel_values"]).latent_dist
        latents = posterior.mean + posterior.std * draws.sample if draws else posterior.sample()
        context = self.text(batch["input_ids"], return_dict=False)[0]
        return latents * self.vae.config.scaling_factor, context
