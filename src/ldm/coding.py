"""Images to latents and back, by a model's autoencoder."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm.checks import dense, inside
from ldm.details import tiling
from ldm.errors import InputError
from ldm.family import Family
from ldm.model import Model
from ldm.tiles import tiled
from ldm.walk import check_finite


def encode(model: Model, images: Tensor, tile: int = 0) -> Tensor:
    """Images [b 3 H W] in [-1, 1] -> latents [b c h w]: the posterior mean times the family's scale.

    tile  pixels along a side of the squares that are encoded one by one (see `tiles`); 0: all at once
    H and W are multiples of `family.vae.factor`. Raises InputError for anything else.
    """
    images, factor = encodable(model.family, images), model.family.vae.factor
    x = images.to(model.device, model.vae.encoder.conv_in.weight.dtype)
    if tiling(model.family, tile):
        return tiled(model.vae.encode, x, tile // factor, (factor, 1)).float()
    return model.vae.encode(x).float()


def decode(model: Model, latents: Tensor, tile: int = 0) -> Tensor:
    """Latents [b c h w] -> images [b 3 H W] in [-1, 1], float32.

    tile  as in `encode`
    Raises InputError for anything else, and NumericError for images that are not finite.
    """
    weight = model.vae.decoder.conv_in.weight
    *_, h, w = decodable(model.family, latents).shape
    chunk = max(1, 64 * 64 // (h * w))  # small pictures together, large ones one by one
    parts = latents.to(weight.device, weight.dtype).split(chunk)
    run, factor = model.vae.decode, model.family.vae.factor
    if tiling(model.family, tile):
        run = partial(tiled, model.vae.decode, tile=tile // factor, grain=(1, factor))
    images = torch.cat([run(part).float() for part in parts])
    check_finite([torch.isfinite(images).all()], "decoding")  # before clamping, which hides infinity
    return images.clamp(-1, 1)


def encodable(family: Family, images: Any) -> Tensor:
    """Images [b 3 H W] in [-1, 1], unchanged, that the autoencoder can encode. Raises InputError."""
    images = dense("images", images, "a tensor [b 3 H W]", (None, 3, None, None))
    *_, h, w = images.shape
    factor = family.vae.factor
    if h % factor or w % factor:
        raise InputError(f"images of {w}×{h} pixels: both sides must be multiples of {factor}; resize them")
    if not inside(images, -1.001, 1.001):
        raise InputError("images has values outside [-1, 1], or that are not finite; rescale it")
    return images


def decodable(family: Family, latents: Any) -> Tensor:
    """Latents [b c h w], unchanged, that the autoencoder can decode. Raises InputError."""
    channels = family.vae.latent_channels
    latents = dense("latents", latents, f"a tensor [b {channels} h w]", (None, channels, None, None))
    if not bool(torch.isfinite(latents.float()).all()):
        raise InputError("latents has values that are not finite; take them from a result or pipe.encode")
    return latents
