"""Perceptual distances by name, and networks that are listened to and not trained.

    gradients   how far edges differ, at three scales; needs no weights   (`autoencoding.gradient_difference`)
    lpips       sum over layers of mean over pixels of w (VGG(x) - VGG(y))²         (Zhang et al. 2018, eq. 1)

Another is any function of two batches of images, handed to `Autoencoding`.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from ldm.errors import InputError
from ldm.training.autoencoding import Perceptual, gradient_difference

PERCEPTUALS = ("gradients", "none", "lpips")


def perceptual_of(name: str, device: torch.device) -> Perceptual:
    """One of `PERCEPTUALS`, its weights on the device. Raises InputError where a package is missing."""
    if name == "lpips":
        return lpips_of(device)
    return gradient_difference if name == "gradients" else nothing


def nothing(x: Tensor, y: Tensor) -> Tensor:
    """0 for each image. Two of [b c H W] -> [b]."""
    return torch.zeros_like(x[:, 0, 0, 0])


def lpips_of(device: torch.device) -> Perceptual:
    """LPIPS on VGG-16, of the package lpips; torchvision downloads the weights once. Raises InputError."""
    try:
        import lpips
    except ImportError as error:
        raise InputError(
            "perceptual=lpips needs the package lpips; pip install 'ldm[lpips]', or give perceptual=gradients"
        ) from error
    network = lpips.LPIPS(net="vgg", verbose=False).to(device)
    return lambda x, y: rearrange(unlearnt(network, x, y), "b 1 1 1 -> b")


def unlearnt(network: nn.Module, *inputs: Tensor) -> Tensor:
    """What a network says, with no gradient to its weights; its buffers stay as they are."""
    held = {name: p.detach() for name, p in network.named_parameters()}
    held |= {name: x.clone() for name, x in network.named_buffers()}
    return functional_call(network, held, inputs)
