"""The cross-attention UNet: what the noise in a latent is, given its level and a text.

Down through the levels, keeping every result on a stack of skips; through the middle; up again, each
residual block reading one skip from the stack (Ronneberger et al. 2015; Ho et al. 2020; Rombach et al. 2022).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.layers import Downsample, ResBlock, Upsample
from ldm.unet.blocks import Transformer
from ldm.unet.config import UNetConfig
from ldm.unet.embeddings import TimeEmbedding

EPS = 1e-5  # of every GroupNorm in residual blocks and at the end; the transformers' have 1e-6


class UNet(nn.Module):
    """unet(x, t, context) -> the network's prediction, of x's shape and meaning given by the family.

    x        [b c h w]  the noisy latent
    t        [b]        noise level in training steps, 0 (clean) to 999 (noise)
    context  [b m c']   text tokens, `config.context_dim` wide
    Returns  [b c h w]
    """

    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__()
        self.config = config
        first, *_ = config.channels
        self.time = TimeEmbedding(first, config.time_dim)
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

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        time = self.time(t)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down:
            x = level(x, time, context, skips)
        x = self.mid(x, time, context)
        for level in self.up:
            x = level(x, time, context, skips)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """One resolution of the U: residual blocks, each followed by a transformer where the level has them."""

    def __init__(self, config: UNetConfig, i: int, dims: list[int]):
        super().__init__()
        width, depth = config.channels[i], config.depth[i]
        self.res = nn.ModuleList(res_block(config, dim, width) for dim in dims)
        self.attn = nn.ModuleList(Transformer(config, width, depth) for _ in dims if depth)

    def run(self, j: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.res[j](x, time)
        return self.attn[j](x, context) if self.attn else x


class DownLevel(Level):
    """A level on the way down; pushes each of its results on `skips`."""

    def __init__(self, config: UNetConfig, i: int, dims: list[int]):
        super().__init__(config, i, dims)
        last = i == len(config.channels) - 1
        self.down = None if last else Downsample(config.channels[i], padding=1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, skips: list[Tensor]) -> Tensor:
        for j in range(len(self.res)):
            x = self.run(j, x, time, context)
            skips.append(x)
        if self.down is not None:
            x = self.down(x)
            skips.append(x)
        return x


class UpLevel(Level):
    """A level on the way up; each residual block takes one result off `skips`."""

    def __init__(self, config: UNetConfig, i: int, dims: list[int]):
        super().__init__(config, i, dims)
        self.up = Upsample(config.channels[i]) if i else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor, skips: list[Tensor]) -> Tensor:
        for j in range(len(self.res)):
            x = self.run(j, torch.cat([x, skips.pop()], dim=1), time, context)
        return x if self.up is None else self.up(x, size=skips[-1].shape[-2:])


class Mid(nn.Module):
    """The bottom of the U: residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig, dim: int):
        super().__init__()
        self.res1, self.res2 = res_block(config, dim, dim), res_block(config, dim, dim)
        self.attn = Transformer(config, dim, config.mid_depth)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        return self.res2(self.attn(self.res1(x, time), context), time)


def res_block(config: UNetConfig, dim: int, width: int) -> ResBlock:
    """A residual block that hears the noise level."""
    return ResBlock(dim, width, groups=config.groups, eps=EPS, time_dim=config.time_dim)
