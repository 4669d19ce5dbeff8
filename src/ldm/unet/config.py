"""The shape of a UNet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """Everything that distinguishes one UNet from another. The defaults are Stable Diffusion 1's."""

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # width per level, finest first
    depth: tuple[int, ...] = (1, 1, 1, 0)  # attention per level, in transformer blocks; 0: convolutions only
    mid_depth: int = 1  # the same between the way down and the way up
    res_blocks: int = 2  # residual blocks per level on the way down; the way up has one more
    context_dim: int | None = 768  # width of the tokens that cross-attention sees; None: there are no tokens
    heads: int | None = 8  # of every attention; None: as many as are `head_dim` wide
    head_dim: int | None = None
    groups: int = 32  # groups of every GroupNorm
    vector_dim: int | None = None  # width of the vector that SDXL adds to the noise level
    labels: int | None = None  # how many labels there are, if one is added to the noise level
    crossing: tuple[bool, ...] = ()  # per level: whether self-attention, too, attends to the context
    scale_shift: bool = False  # whether the noise level scales and shifts, or is only added
    res_sampling: bool = False  # whether a residual block halves and doubles the size, or a convolution
    linear: bool = False  # whether files have the projections around transformers as linear layers

    @property
    def time_dim(self) -> int:
        """Width of the embedding of the noise level."""
        return 4 * self.channels[0]

    def heads_at(self, width: int) -> int:
        """Attention heads where there are `width` channels."""
        return self.heads or width // (self.head_dim or width)
