"""What an autoencoder is trained by (Rombach et al. 2022, eq. 25; Esser et al. 2021, eq. 5 to 7).

    loss = rec(x, y) + perceptual(x, y) + lambda adv(y) + regularisation(z),      y = decoder(z)

    KL   regularisation = small * KL(N(mean, exp(logvar)) | N(0, I))        z = mean + exp(logvar / 2) eps
    VQ   regularisation = |sg(z) - e|² + beta |z - sg(e)|²                  e = the codes nearest to z

All of them are per image [b]; rec, perceptual and VQ are means over an image's numbers, KL is a sum in nats.
The 1e-6 of Rombach et al. stands beside errors summed over the image: beside means it is 1e-6 / (c h w of x).
lambda, and the discriminator, are in `adversarial.py`.
"""

from collections.abc import Callable, Iterable
from math import sqrt

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from ldm.errors import InputError
from ldm.vae.quantize import Codebook

Perceptual = Callable[
    [Tensor, Tensor], Tensor
]  # (images, images), both [b 3 H W] in [-1, 1] -> distances [b]


def l1(x: Tensor, y: Tensor) -> Tensor:
    """mean |x - y| of each image. Two of [b c h w] -> [b]."""
    return reduce((x - y).abs(), "b c h w -> b", "mean")


def l2(x: Tensor, y: Tensor) -> Tensor:
    """mean (x - y)² of each image. Two of [b c h w] -> [b]."""
    return reduce((x - y).square(), "b c h w -> b", "mean")


def gradient_difference(x: Tensor, y: Tensor, scales: int = 3) -> Tensor:
    """How far edges differ: |dx - dy| of neighbouring pixels, at full size and halved again and again.

    A `Perceptual` that needs no weights, and no LPIPS: it sees blur and shifted edges, and knows nothing of
    what is in an image. (Mathieu et al. 2016, eq. 6, compare the sizes of such gradients, at one scale.)

    x, y    [b c h w]
    scales  sizes to look at
    Returns [b], the mean over scales, directions and pixels.
    Raises InputError for images of fewer than 2^scales pixels along a side.
    """
    if min(x.shape[2:]) < 2**scales:
        raise InputError(
            f"images of {list(x.shape[2:])} pixels have no {scales} scales; give at least {2**scales} "
            "pixels along each side, or fewer scales"
        )
    error, total = x - y, torch.zeros_like(x[:, 0, 0, 0])
    for _ in range(scales):
        total = total + (l1(error[:, :, 1:], error[:, :, :-1]) + l1(error[..., 1:], error[..., :-1])) / 2
        error = F.avg_pool2d(error, 2)
    return total / scales


def sampled(mean: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """z of q(z | x), through which gradients reach both (Kingma & Welling 2014, sec. 2.4). All [b c h w]."""
    return mean + (logvar / 2).exp() * eps


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) | N(0, I)) = sum (mean² + exp(logvar) - 1 - logvar) / 2, nats per image.

    Two of [b c h w], as `VAE.moments` gives them -> [b] (Kingma & Welling 2014, app. B).
    """
    return reduce(mean.square() + logvar.exp() - 1 - logvar, "b c h w -> b", "sum") / 2


def quantised(codebook: Codebook, z: Tensor, beta: float = 0.25) -> tuple[Tensor, Tensor]:
    """The codes nearest to z, and what draws codes and z to one another (van den Oord et al. 2017, eq. 3).

    codebook  is drawn to z with the weight 1
    z         [b c h w], drawn to its codes with the weight beta
    Returns   the codes [b c h w], whose gradient goes straight through to z and not into the codebook; and
              the loss [b]. The decoder is then handed `vae.from_latent(codes)`.

    beta stands where the paper has it; the published code of latent diffusion had it on the other term.
    """
    e = codebook(z)
    return z + (e - z).detach(), l2(z.detach(), e) + beta * l2(z, e.detach())


@torch.no_grad()
def scale_of(batches: Iterable[Tensor]) -> float:
    """1 / std of all numbers of all latents: the scale to unit variance (Rombach et al. 2022, app. G).

    batches  [b c h w] each, unscaled: samples of q(z | x), or with a codebook z before it is quantised
    Returns  what `VAEConfig.scale` is to be
    Raises InputError for fewer than two numbers, or all the same ones.
    """
    count, mean, square = 0, 0.0, 0.0  # square: sum of (z - mean)², joined as by Chan et al. (1979)
    for z in batches:
        new = z.detach().cpu().double()
        n, middle = new.numel(), float(new.mean())
        share = n / (count + n)
        square += float((new - middle).square().sum()) + (middle - mean) ** 2 * count * share
        mean, count = mean + (middle - mean) * share, count + n
    if count < 2 or not square > 0:
        raise InputError(f"the scale needs latents that differ, not {count} numbers of no variance")
    return sqrt(count / square)
