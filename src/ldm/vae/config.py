"""The shape of an autoencoder."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VAEConfig:
    """Everything that distinguishes one autoencoder from another. The defaults are Stable Diffusion's."""

    channels: tuple[int, ...] = (128, 256, 512, 512)  # width per level, finest first
    res_blocks: int = 2  # residual blocks per encoder level; the decoder has one more
    image_channels: int = 3
    latent_channels: int = 4
    groups: int = 32  # groups of every GroupNorm
    codes: int | None = None  # how many a quantised latent is made of; None: a Gaussian latent
    attention: tuple[bool, ...] = ()  # per level: whether attention follows its residual blocks
    mid_attention: bool = True
    overflows: bool = False  # whether its values are too large for float16, so that it stays in float32
    scale: float = 0.18215  # latent = scale * posterior mean, so that latents have unit variance

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel, along a side."""
        return 2 ** (len(self.channels) - 1)

    @property
    def moments(self) -> int:
        """Channels that the encoder puts out: mean and log-variance, or the code alone."""
        return self.latent_channels if self.codes else 2 * self.latent_channels
