"""The cross-attention UNet: what the noise in a latent is, given its level and a text.

Down through the levels, keeping every result on a stack of skips; through the middle; up again, each
residual block reading one skip from the stack (Ronneberger et al. 2015; Ho et al. 2020; Rombach et al. 2022).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.layers import Downsample, ResBlock, Upsample, double, half, keep
from ldm.once import Once
from ldm.unet.blocks import PlainAttention, Transformer
from ldm.unet.config import UNetConfig
from ldm.unet.embeddings import TimeEmbedding, VectorEmbedding

EPS = 1e-5  # of every GroupNorm in residual blocks and at the end; the transformers' have 1e-6


class UNet(nn.Module):
    """unet(x, t, context, vector, label) -> the network's prediction, of x's height and width.

    x        [b c h w]  the noisy latent, and what is stacked on it
    t        [b]        noise level in training steps, 0 (clean) to 999 (noise)
    context  [b m c']   text tokens, `config.context_dim` wide
    vector   [b d]      for SDXL, `config.vector_dim` wide: pooled text and sizes
    label    [b]        int64, for the x4 upscaler: how noisy the low resolution image is
    Returns  [b c h w]  with `config.out_channels`
    For many steps of one text, t may be `Once` of what `embed` made of it, and context `Once` of the tokens.
    Raises InputError for one of the last three that the network needs and was not given.
    """

    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__()
        self.config = config
        first, *_ = config.channels
        self.time = TimeEmbedding(first, config.time_dim)
        self.vector = VectorEmbedding(config.vector_dim, config.time_dim) if config.vector_dim else None
        self.label = nn.Embedding(config.labels, config.time_dim) if config.labels else None
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [first]  # channels of every skip, in the order they are pushed
        for i, width in enumerate(config.channels):
            dims = skips[-1:] + [width] * (config.res_blocks - 1)
            self.down.append(DownLevel(config, i, dims))
            skips += [width] * config.res_blocks
            if i < len(config.channels) - 1:
                skips.append(width)
        dim = config.channels[-1]
        self.mid = Mid(config, dim)
        for i, width in reversed(list(enumerate(config.channels))):
            dims = []
            for _ in range(config.res_blocks + 1):
                dims.append(dim + skips.pop())
                dim = width
            self.up.append(UpLevel(config, i, dims))
        self.norm_out = nn.GroupNorm(config.groups, first, eps=EPS)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        t: Tensor | Once,
        context: Tensor | Once | None = None,
        vector: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        if context is None and self.config.context_dim:
            raise InputError(f"this UNet needs context, tokens [b m {self.config.context_dim}]")
        time = t if isinstance(t, Once) else self.embed(t, vector, label)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down:
            x = level(x, time, context, skips)
        x = self.mid(x, time, context)
        for level in self.up:
            x = level(x, time, context, skips)
        return self.conv_out(F.silu(self.norm_out(x)))

    def embed(self, t: Tensor, vector: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """What the residual blocks hear, [b time_dim]: the noise level with the vector and the label.

        Raises InputError as a call does.
        """
        time: Tensor = self.time(t)
        if self.vector is not None:
            time = time + self.vector(given("vector", vector, f"[b {self.config.vector_dim}]"))
        if self.label is not None:
            labels = f"[b] of whole numbers below {self.config.labels}"
            time = time + self.label(given("label", label, labels))
        return time


def given(name: str, value: Tensor | None, shape: str) -> Tensor:
    """An input that this network cannot do without. Raises InputError."""
    if value is None:
        raise InputError(f"this UNet needs {name}, a tensor {shape}")
    return value


class Level(nn.Module):
    """One resolution of the U: residual blocks, each followed by attention where the level has it."""

    def __init__(self, config: UNetConfig, i: int, dims: list[int]):
        super().__init__()
        width, depth = config.channels[i], config.depth[i]
        crossing = bool(config.crossing and config.crossing[i])
        self.res = nn.ModuleList(res_block(config, dim, width) for dim in dims)
        self.attn = nn.ModuleList(attention(config, width, depth, crossing) for _ in dims if depth)

    def run(self, j: int, x: Tensor, time: Tensor | Once, context: Tensor | Once | None) -> Tensor:
        x = self.res[j](x, time)
        return self.attn[j](x, context) if self.attn else x


class DownLevel(Level):
    """A level on the way down; pushes each of its results on `skips`."""

    def __init__(self, config: UNetConfig, i: int, dims: list[int]):
        super().__init__(config, i, dims)
        width, last = config.channels[i], i == len(config.channels) - 1
        smaller = (
            res_block(config, width, width, half) if config.res_sampling else Downsample(width, padding=1)
        )
        self.down = None if last else smaller

    def forward(
        self, x: Tensor, time: Tensor | Once, context: Tensor | Once | None, skips: list[Tensor]
    ) -> Tensor:
        for j in range(len(self.res)):
            x = self.run(j, x, time, context)
            skips.append(x)
        if self.down is not None:
            x = self.down(x, time) if isinstance(self.down, ResBlock) else self.down(x)
            skips.append(x)
        return x


class UpLevel(Level):
    """A level on the way up; each residual block takes one result off `skips`."""

    def __init__(self, config: UNetConfig, i: int, dims: list[int]):
        super().__init__(config, i, dims)
        width = config.channels[i]
        larger = res_block(config, width, width, double) if config.res_sampling else Upsample(width)
        self.up = larger if i else None

    def forward(
        self, x: Tensor, time: Tensor | Once, context: Tensor | Once | None, skips: list[Tensor]
    ) -> Tensor:
        for j in range(len(self.res)):
            x = self.run(j, torch.cat([x, skips.pop()], dim=1), time, context)
        if self.up is None:
            return x
        if isinstance(self.up, ResBlock):
            return self.up(x, time)
        return self.up(x, size=skips[-1].shape[-2:])


class Mid(nn.Module):
    """The bottom of the U: residual block, attention, residual block."""

    def __init__(self, config: UNetConfig, dim: int):
        super().__init__()
        self.res1, self.res2 = res_block(config, dim, dim), res_block(config, dim, dim)
        self.attn = attention(config, dim, config.mid_depth)

    def forward(self, x: Tensor, time: Tensor | Once, context: Tensor | Once | None) -> Tensor:
        return self.res2(self.attn(self.res1(x, time), context), time)


def attention(config: UNetConfig, dim: int, depth: int, crossing: bool = False) -> nn.Module:
    """What follows a residual block: a transformer, or plain attention in a network that hears no text."""
    return Transformer(config, dim, depth, crossing) if config.context_dim else PlainAttention(config, dim)


def res_block(
    config: UNetConfig, dim: int, width: int, resample: Callable[[Tensor], Tensor] = keep
) -> ResBlock:
    """A residual block that hears the noise level."""
    return ResBlock(
        dim,
        width,
        groups=config.groups,
        eps=EPS,
        time_dim=config.time_dim,
        scale_shift=config.scale_shift,
        resample=resample,
    )
