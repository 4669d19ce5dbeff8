"""The decoder: from latents back to pictures. What encodes is computed (`patches`), and stays as it is.

    loss = |decode(z) - x| + (decode(z) - x)²,      z = the latent of x, and a little noise

What the painter paints is not exact, so the decoder learns to see through noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from patches import project, projection_of
from recipe import Recipe
from scenes import random, to_tensor
from torch import Tensor, nn

from ldm.evaluation.shapes.world import pairs_seen, sample_scene
from ldm.pipeline import Pipeline
from ldm.ranks import Ranks
from ldm.training.distributed import spread
from ldm.training.ema import trained
from ldm.training.framing import generator
from ldm.training.loop import Plan, Run, train
from ldm.training.rates import rate
from ldm.vae import VAE

LOOKED_AT = 32  # pictures whose PSNR is measured
NOISE = 5  # beside `scenes.SCENE`


class Decoding(nn.Module):
    """(z [b k h w], x [b 3 H W]) -> the mean loss, a scalar. Only the decoder and its door are trained."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae
        for part in (vae.from_latent, vae.decoder):
            part.requires_grad_(True)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        error = self.vae.decode(z) - x
        return error.abs().mean() + error.square().mean()


def train_decoder(
    pipe: Pipeline, recipe: Recipe, run: Path, ranks: Ranks, every: int = 500, progress: bool = True
) -> None:
    """The decoder of `pipe` learns. every: steps between checkpoints."""
    stage, seed, device = recipe.decoder, recipe.seed_of(2), ranks.device
    pipe.vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decoding, projection = Decoding(pipe.vae), projection_of(pipe.vae)
    module = spread(decoding, ranks, units={decoding: ()})
    shown = pictures(recipe.seed_of(3), 0, range(LOOKED_AT))

    def loss(step: int, part: int) -> Tensor:
        # every fourth step few whole pictures, else quarters of many: colours are what the decoder learns
        # last, and a step on quarters sees four times as many in the same time
        whole = step % 4 == 3
        size = stage.batch // 4 if whole else stage.batch
        rows = range(step * stage.batch + ranks.rank, step * stage.batch + size, ranks.size)
        x = pictures(seed, 0 if whole else 2, rows)
        z = blurred(project(x, projection), recipe.blur, seed, rows)
        value: Tensor = module(z.to(device), x.to(device))
        return value

    @torch.no_grad()
    def look(step: int) -> Mapping[str, float]:
        error = pipe.vae.decode(project(shown, projection).to(device)) - shown.to(device)
        return {"psnr": float(10 * torch.log10(4 / error.square().mean()))}

    plan = Plan(stage.steps, rate("cosine", stage.steps, stage.warmup), save_every=every, look_every=every)
    adam = torch.optim.AdamW(trained(decoding).values(), stage.rate, betas=(0.9, 0.99), fused=True)
    told = {"recipe": asdict(stage), "blur": recipe.blur, "seed": seed}
    train(Run(decoding, adam, loss, plan, run / "decoder", told, ranks=ranks, look=look), progress=progress)
    pipe.vae.requires_grad_(False)


def pictures(seed: int, cut: int, rows: Sequence[int]) -> Tensor:
    """Crowded scenes, which teach most per pixel: [b 3 64 64], or random parts, 1 / cut as wide and high.

    cut  0: whole
    """
    every = [random(seed, row) for row in rows]
    drawn = [sample_scene(rng, "three" if rng.random() < 0.6 else "two", pairs_seen()) for rng in every]
    x = to_tensor(drawn)
    return torch.stack([cropped(image, cut, rng) for image, rng in zip(x, every, strict=True)]) if cut else x


def cropped(image: Tensor, cut: int, rng: np.random.Generator) -> Tensor:
    """A random part of a picture. [c H W] -> [c H/cut W/cut]."""
    side = image.shape[-1] // cut
    y, x = rng.integers(image.shape[-1] - side + 1, size=2).tolist()
    return image[:, y : y + side, x : x + side]


def blurred(z: Tensor, most: float, seed: int, rows: Sequence[int]) -> Tensor:
    """Latents [b k h w] with noise of a deviation between 0 and `most` each."""
    each = [generator(seed, NOISE, row) for row in rows]
    noise = [torch.rand(1, generator=g) * torch.randn(z.shape[1:], generator=g) for g in each]
    return z + most * torch.stack(noise)
