"""The latents: each 4 x 4 patch of a picture, projected on the principal components of all patches.

    z_i = gain_i (u_i · patch - u_i · mean),      u_i the i-th principal direction of 48 numbers

The first three are about the patch's mean colour, scaled to variance 1; the others say how colour runs inside
the patch, and are kept smaller the less they matter. Such latents are a small picture: quickly learned.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.vae import VAE

SIDE = 4  # pixels
DETAIL = 0.4  # standard deviation of the fourth component; of later ones as the root of their own
CALM, LIFT = 64.0, 12.0  # see set_encoder
NOISE = 0.03  # standard deviation of the posterior


class Projection(NamedTuple):
    """z = weight · patch + bias, patches in the order (channel, row, column)."""

    weight: Tensor  # [k 48]
    bias: Tensor  # [k]


def principal(images: Tensor, k: int) -> Projection:
    """The first k principal components of the patches of images [b 3 H W] in [-1, 1]."""
    patches = to_patches(images).reshape(-1, 3 * SIDE**2).double()
    mean = patches.mean(0)
    _, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    directions = vectors.flip(1)[:, :k].T
    signs = directions.sum(1, keepdim=True).sign()  # eigenvectors have no sign of their own
    directions = directions * torch.where(signs == 0, 1, signs)
    spread = ((patches - mean) @ directions.T).std(0)
    wanted = DETAIL * (spread / spread[3]).sqrt()
    wanted[:3] = 1
    weight = directions * (wanted / spread)[:, None]
    return Projection(weight.float(), -(weight @ mean).float())


def project(images: Tensor, projection: Projection) -> Tensor:
    """Images [b 3 H W] in [-1, 1] -> latents [b k H/4 W/4]."""
    z = to_patches(images) @ projection.weight.T + projection.bias
    return rearrange(z, "b h w k -> b k h w")


def to_patches(images: Tensor) -> Tensor:
    """[b 3 H W] -> [b h w 48]."""
    return rearrange(images, "b c (h p) (w q) -> b h w (c p q)", p=SIDE, q=SIDE)


def set_encoder(vae: VAE, projection: Projection) -> None:
    """Weights with which the encoder computes the projection, and nothing else.

    Two strided convolutions gather a patch into 48 channels, a 1 x 1 convolution projects them. The last
    GroupNorm and SiLU are made straight: constants of +-CALM in each group fix its statistics, and a shift
    by LIFT keeps the SiLU where it is the identity. What is left of them is a mean error of 0.0001.
    """
    encoder, k = vae.encoder, vae.config.latent_channels
    first, second, third = encoder.down
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if "conv2." in name or "attn.out." in name or "skip." in name or "down.weight" in name:
                p.zero_()
        ends = (*encoder.conv_in.parameters(), *encoder.conv_out.parameters())
        for p in (*ends, first.down.bias, second.down.bias):
            p.zero_()
        for c in range(3):
            encoder.conv_in.weight[c, c, 1, 1] = 1
        gather(first.down.weight, 3)
        for c in range(12):
            second.res[0].skip.weight[c, c] = 1
        gather(second.down.weight, 12)
        skip, width = third.res[0].skip, third.res[0].skip.out_channels // k
        for i in range(k):  # a group holds z_i, -z_i, and CALM with alternating signs
            place = i * width
            skip.weight[place, :, 0, 0] = gathered(projection.weight[i])
            skip.weight[place + 1] = -skip.weight[place]
            skip.bias[place], skip.bias[place + 1] = projection.bias[i], -projection.bias[i]
            skip.bias[place + 2 : place + width] = CALM * torch.tensor([1.0, -1.0]).repeat(width // 2 - 1)
            encoder.norm_out.weight[place] = CALM * ((width - 2) / width) ** 0.5
            encoder.norm_out.bias[place] = LIFT
            encoder.conv_out.weight[i, place, 1, 1] = 1
            encoder.conv_out.bias[i] = -LIFT
        vae.to_moments.weight.copy_(torch.eye(2 * k)[:, :, None, None])
        vae.to_moments.bias.zero_()
        vae.to_moments.bias[k:] = 2 * math.log(NOISE)


def projection_of(vae: VAE) -> Projection:
    """The projection that `set_encoder` gave an encoder, on the CPU. Raises InputError for any other."""
    k = vae.config.latent_channels
    encoder = vae.encoder
    skip = getattr(encoder.down[-1].res[0], "skip", None)
    if len(encoder.down) != 3 or not isinstance(skip, nn.Conv2d) or skip.in_channels != 3 * SIDE**2:
        raise InputError("this autoencoder's latents are no projections of patches; give the bundled model's")
    width = skip.out_channels // k
    if not torch.equal(skip.weight[1::width], -skip.weight[::width]) or encoder.conv_in.bias.any():
        raise InputError("this autoencoder's encoder was trained; give the bundled model's")
    weight = torch.stack([scattered(row) for row in skip.weight.detach()[::width, :, 0, 0]])
    return Projection(weight.cpu(), skip.bias.detach()[::width].cpu().clone())


def gather(weight: Tensor, channels: int) -> None:
    """A convolution of stride 2 that sorts 2 x 2 pixels into channels: (c, row, column)."""
    for c in range(channels):
        for row in range(2):
            for column in range(2):
                weight[4 * c + 2 * row + column, c, row, column] = 1


def gathered(patch: Tensor) -> Tensor:
    """Numbers of a patch [48] in the order (c, row, column) -> in the order that two `gather` leave."""
    return rearrange(patch, "(c r1 r0 q1 q0) -> (c r0 q0 r1 q1)", c=3, r1=2, r0=2, q1=2, q0=2)


def scattered(patch: Tensor) -> Tensor:
    """The inverse of `gathered`."""
    return rearrange(patch, "(c r0 q0 r1 q1) -> (c r1 r0 q1 q0)", c=3, r1=2, r0=2, q1=2, q0=2)
