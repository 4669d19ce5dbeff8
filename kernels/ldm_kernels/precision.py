"""Decoding in bfloat16, where the pictures stay what they are.

agreement = 10 log10(2² / mean (a - b)²)      in decibels, of pictures in [-1, 1]
"""

import logging
from copy import deepcopy
from math import inf, log10

import torch
from torch import Tensor

from ldm.noise import Noise
from ldm.vae import VAE

SIDE = 64  # of the latent that is tried, and its seed
SEED = 0
LEAST = 40.0  # decibels: mean differences of a 200th, one or two of the 256 values of a pixel
PARTS = ("decoder", "from_latent", "codebook")  # that decode
log = logging.getLogger("ldm")


@torch.no_grad()
def narrow(vae: VAE, least: float = LEAST) -> None:
    """Let an autoencoder of wider numbers decode in bfloat16, if pictures then agree to `least` decibels.

    Tried on one latent of unit noise. Otherwise it stays as it is, and the logger "ldm" says so. The encoder
    stays as it is in any case; so does what is in float16, which is as fast and finer.
    """
    own = {name: part for name in PARTS if (part := getattr(vae, name)) is not None}
    weight = vae.decoder.conv_in.weight
    if weight.dtype.itemsize <= torch.bfloat16.itemsize:
        return
    z = Noise([SEED], (vae.config.latent_channels, SIDE, SIDE), weight.device)()
    wanted = picture(vae, z.to(weight.dtype))
    for name, part in own.items():
        setattr(vae, name, deepcopy(part).to(torch.bfloat16))
    found = agreement(picture(vae, z.to(torch.bfloat16)), wanted)
    if found >= least:
        return
    for name, part in own.items():
        setattr(vae, name, part)
    log.warning(
        "the autoencoder decodes in %s: in bfloat16 pictures would agree to %.1f dB only, and %.0f are asked",
        weight.dtype, found, least,
    )  # fmt: skip


def picture(vae: VAE, z: Tensor) -> Tensor:
    """Of a latent, float32 in [-1, 1]."""
    return vae.decode(z).float().clamp(-1, 1)


def agreement(a: Tensor, b: Tensor) -> float:
    """Of two pictures, in decibels."""
    error = float((a - b).square().mean())
    return 10 * log10(4 / error) if error else inf
