"""A discriminator that judges patches, and how much an autoencoder hears of it (Esser et al. 2021, sec. 3.1).

    hinge            D: (max(0, 1 - D(x)) + max(0, 1 + D(y))) / 2          G: -D(y)          (Lim & Ye 2017)
    non-saturating   D: (softplus(-D(x)) + softplus(D(y))) / 2             G: softplus(-D(y))
                                                                           (Goodfellow et al. 2014, sec. 3)
    lambda = |grad of rec| / (|grad of adv| + 1e-4),  at the decoder's last layer

with x real and y reconstructed. The halves are those of the published code of Esser et al.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.ranks import Ranks

LEAST = 24  # pixels along a side, of which one logit is left


class PatchGAN(nn.Module):
    """discriminator(images [b c H W]) -> logits [b 1 h w], high where a patch looks real (Isola et al. 2017).

    Three halvings, then two convolutions at H / 8: each logit sees 70 × 70 pixels. BatchNorm after every
    convolution but the first and the last, as in latent diffusion's; in training an image's logits therefore
    depend on its batch, of real images or of reconstructed ones. On several GPUs take SyncBatchNorm.

    channels  of the images
    width     channels after the first convolution; doubled by each of the next three

    The weights are drawn N(0, 0.02²) by torch's global generator.
    Raises InputError for images of fewer than 24 pixels along a side.
    """

    def __init__(self, channels: int = 3, width: int = 64):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.blocks = nn.Sequential(
            block(width, 2 * width, stride=2),
            block(2 * width, 4 * width, stride=2),
            block(4 * width, 8 * width, stride=1),
        )
        self.conv_out = nn.Conv2d(8 * width, 1, 4, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[2:]) < LEAST:
            raise InputError(
                f"a discriminator sees no patch of images of {list(images.shape[2:])} pixels; give at least "
                f"{LEAST} along each side, or train without one"
            )
        h = F.leaky_relu(self.conv_in(images), 0.2)
        return self.conv_out(self.blocks(h))


def block(dim: int, width: int, stride: int) -> nn.Sequential:
    """Convolution, BatchNorm, leaky ReLU; the norm has the bias."""
    conv = nn.Conv2d(dim, width, 4, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.LeakyReLU(0.2))


class Adversarial(NamedTuple):
    """A pair of losses of logits [b 1 h w] -> [b], means over the patches of an image."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (of real images, of reconstructed ones, detached)
    generator: Callable[[Tensor], Tensor]  # (of reconstructed ones)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(max(0, 1 - real) + max(0, 1 + fake)) / 2."""
    return patches(F.relu(1 - real) + F.relu(1 + fake)) / 2


def hinge_generator(fake: Tensor) -> Tensor:
    """-fake."""
    return patches(-fake)


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(softplus(-real) + softplus(fake)) / 2: cross-entropy of telling them apart."""
    return patches(F.softplus(-real) + F.softplus(fake)) / 2


def non_saturating_generator(fake: Tensor) -> Tensor:
    """softplus(-fake) = -log of how probably it is taken for real."""
    return patches(F.softplus(-fake))


HINGE = Adversarial(hinge_discriminator, hinge_generator)
NON_SATURATING = Adversarial(non_saturating_discriminator, non_saturating_generator)


def patches(losses: Tensor) -> Tensor:
    """Of each patch [b 1 h w] -> of each image [b]."""
    return reduce(losses, "b 1 h w -> b", "mean")


def adaptive_weight(rec: Tensor, adv: Tensor, last: Tensor, ranks: Ranks = Ranks()) -> Tensor:
    """lambda, with which both losses pull equally hard on the last layer (Esser et al. 2021, eq. 7).

    rec    the reconstruction and perceptual loss of the batch, one number
    adv    the generator's loss of the batch, one number
    last   the weight of the decoder's last layer, `vae.decoder.conv_out.weight`
    ranks  that have a share of the batch each; the gradients are means over them
    Returns one number in [0, 1e4], without a gradient; both graphs are kept. 1e-4 and 1e4 are the published
    code's; the paper has 1e-6.
    """
    (of_rec,) = torch.autograd.grad(rec, last, retain_graph=True)
    (of_adv,) = torch.autograd.grad(adv, last, retain_graph=True)
    of_rec, of_adv = ranks.mean(torch.stack([of_rec, of_adv]))
    return (of_rec.norm() / (of_adv.norm() + 1e-4)).clamp(max=1e4)
