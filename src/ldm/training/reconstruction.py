"""What is measured of an autoencoder: how well it gives images back, and the scale of its latents.

    PSNR  = 10 log10(4 / mean (x - y)²)        decibels, of images in [-1, 1]
    scale = 1 / std(z),  z ~ q(z | x)          all numbers of all latents (Rombach et al. 2022, app. G)

The scale stands in the model's family, and in its autoencoder's config; `set_scale` writes both.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange, reduce
from PIL import Image
from torch import Tensor

from ldm.checks import whole
from ldm.errors import InputError
from ldm.image import to_unit
from ldm.model import Model
from ldm.training.autoencoding import sampled, scale_of
from ldm.training.draws import of_rows
from ldm.training.images import MOST_NUMBER
from ldm.vae import VAE


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal to noise ratio of each image, in decibels. Two of [b c H W] in [-1, 1] -> [b].

    Both are cut to [-1, 1] first, as pictures are. Of equal images it is infinite.
    """
    error = to_unit(x) - to_unit(y)  # a range of 1, and so 1 / mse
    return -10 * reduce(error.square(), "b c h w -> b", "mean").log10()


@torch.no_grad()
def reconstructed(vae: VAE, images: Tensor) -> Tensor:
    """decoder(mean of q(z | x)), or of its codes; cut to [-1, 1]. [b 3 H W] -> [b 3 H W], float32."""
    weight = vae.to_moments.weight
    return vae.decode(vae.encode(images.to(weight))).float().clamp(-1, 1)


def reconstruction_sheet(vae: VAE, images: Tensor) -> Image.Image:
    """Images [b 3 H W] in [-1, 1] side by side, and below each what the autoencoder makes of it."""
    y = reconstructed(vae, images)
    rows = rearrange([images.to(y), y], "two b c h w -> (two h) (b w) c")
    return Image.fromarray((to_unit(rows) * 255).round().cpu().numpy().astype(np.uint8))


def measured_scale(vae: VAE, batches: Iterable[Tensor], count: int, seed: int = 0) -> float:
    """The scale that brings latents to unit variance, from the first `count` images.

    batches  of images [b 3 H W] in [-1, 1]; no more are asked for than are needed
    seed     of the noise of q(z | x)
    Returns  what `VAEConfig.scale` is to be
    Raises InputError for fewer images, and for latents that do not differ.
    """
    return scale_of(latents(vae, batches, whole("count", count, MOST_NUMBER), seed))


@torch.no_grad()
def latents(vae: VAE, batches: Iterable[Tensor], count: int, seed: int) -> Iterator[Tensor]:
    """Unscaled samples of q(z | x) of so many images; with a codebook z before it is quantised."""
    weight, done = vae.to_moments.weight, 0
    for batch in batches:
        images = batch[: count - done]
        rows = range(done, done + len(images))
        mean, logvar = vae.moments(images.to(weight))
        if logvar is not None:
            _, (eps,) = of_rows(seed, rows, 0, mean.shape[1:])
            mean = sampled(mean, logvar, eps.to(mean))
        yield mean
        done = rows.stop
        if done == count:
            return
    raise InputError(f"the scale is to be of {count} images, and there are {done}; give fewer, or more data")


def set_scale(model: Model, scale: float) -> None:
    """Give a model's autoencoder a scale, in place: in all that is sampled, saved, or encoded from now on."""
    config, origin = replace(model.vae.config, scale=scale), model.origin
    model.vae.config, model.family = config, replace(model.family, vae=config)
    model.origin = replace(origin, extras=rescaled(origin.extras, scale), aside=rescaled(origin.aside, scale))


def rescaled(tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Tensors beside a file's weights, with another scale where they had one."""
    return {k: torch.full_like(x, scale) if k == "scale_factor" else x for k, x in tensors.items()}
