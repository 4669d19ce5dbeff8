"""Packed models whose UNets go through graphs; a recorder that runs things again stands for CUDA's."""

import torch
from ldm_kernels import networks
from ldm_kernels.steps import Captured

from ldm.methods import Method
from ldm.once import Once
from tests.kernels.ways import packed
from tests.tiny import unit_noise

OPTIONS = {"seed": 3, "num_inference_steps": 3, "output_type": "latent", "progress": False}


class Again:
    """A recorder as CUDA's is: what is recorded is a function of tensors that stay, and so is its result."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, function):
        self.recorded += 1
        out = function()

        def replay():
            self.replayed += 1
            new = function()
            if isinstance(out, tuple):
                return tuple(a if a is None else a.copy_(b) for a, b in zip(out, new, strict=True))
            return out.copy_(new)

        return replay


class Graphed:
    """A small model whose UNet goes through graphs, and one that is packed as well but has none."""

    def __init__(self, name, **options):
        self.plain, self.pipe, self.record = packed(name), packed(name), Again()
        unet = self.pipe.unet
        run = Method(networks.unet_forward, unet)
        record = options.pop("record", self.record)
        self.captured = Captured(unet, run, lambda: record, **options)
        networks.enter(unet, self.captured)

    def both(self, *given, **options):
        """Latents of both."""
        return tuple(pipe(*given, **OPTIONS | options).latents for pipe in (self.pipe, self.plain))


def step(unet, t=500.0, side=8, seed=0, context=None, rows=1):
    """A call of the UNet with what a path would give it."""
    x = unit_noise(seed, rows, unet.config.in_channels, side, side)
    context = Once(unit_noise(seed + 1, rows, 9, unet.config.context_dim)) if context is None else context
    return unet(x, Once(unet.embed(torch.full((rows,), t))), context)
