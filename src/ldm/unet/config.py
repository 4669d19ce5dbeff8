"""The shape of a UNet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """Everything that distinguishes one UNet from another. The defaults are Stable Diffusion 1's."""

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # width per level, finest first
    depth: tuple[int, ...] = (1, 1, 1, 0)  # transformer blocks per level; 0: convolutions only
    mid_depth: int = 1  # transformer blocks between the way down and the way up
    res_blocks: int = 2  # residual blocks per level on the way down; the way up has one more
    context_dim: int = 768  # width of the tokens that cross-attention sees
    heads: int = 8  # of every attention
    groups: int = 32  # groups of every GroupNorm

    @property
    def time_dim(self) -> int:
        """Width of the embedding of the noise level."""
        return 4 * self.channels[0]
