"""The autoencoder: an image as a small latent, and back (Rombach et al. 2022, sec. 3.1 and app. G).

    KL    q(z | x) = N(mean(x), exp(logvar(x)))        x ≈ decoder(z)
    VQ    z = encoder(x)                               x ≈ decoder(nearest codes of z)

The latent that the diffusion model sees is `scale * z`; the scale lives in this file and nowhere else.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.attention import Attention
from ldm.layers import Downsample, ResBlock, Upsample
from ldm.vae.config import VAEConfig
from ldm.vae.quantize import Codebook

EPS = 1e-6  # of every GroupNorm in the autoencoder; the UNet's residual blocks have 1e-5


class VAE(nn.Module):
    """Images [b 3 H W] in [-1, 1] <-> latents [b c h w] of about unit variance; H = h * factor."""

    def __init__(self, config: VAEConfig = VAEConfig()):
        super().__init__()
        self.config = config
        latent, moments = config.latent_channels, config.moments
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.to_moments = nn.Conv2d(moments, moments, 1)
        self.from_latent = nn.Conv2d(latent, latent, 1)
        self.codebook = Codebook(config.codes, latent) if config.codes else None

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance, unscaled, of q(z | x); with a codebook, the code before it is quantised.

        [b 3 H W] in [-1, 1] -> two of [b c h w], or one and None.
        """
        moments = self.to_moments(self.encoder(images))
        if self.codebook is not None:
            return moments, None
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, images: Tensor) -> Tensor:
        """The scaled mean of q(z | x), not quantised. [b 3 H W] in [-1, 1] -> [b c h w]."""
        return self.moments(images)[0] * self.config.scale

    def decode(self, latents: Tensor) -> Tensor:
        """[b c h w] scaled -> images [b 3 H W], in about [-1, 1] and not clamped."""
        z = latents / self.config.scale
        return self.decoder(self.from_latent(z if self.codebook is None else self.codebook(z)))


class Encoder(nn.Module):
    """[b 3 H W] -> [b 2c h w], the moments before their last 1×1 convolution."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        *_, deepest = config.channels
        self.conv_in = nn.Conv2d(config.image_channels, config.channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        dim = config.channels[0]
        for i, width in enumerate(config.channels):
            self.down.append(DownLevel(config, i, dim))
            dim = width
        self.mid = mid(config, deepest)
        self.norm_out = nn.GroupNorm(config.groups, deepest, eps=EPS)
        self.conv_out = nn.Conv2d(deepest, config.moments, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """[b c h w] -> [b 3 H W]; its levels run coarsest first."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        *_, dim = config.channels
        self.conv_in = nn.Conv2d(config.latent_channels, dim, 3, padding=1)
        self.mid = mid(config, dim)
        self.up = nn.ModuleList()
        for i, width in reversed(list(enumerate(config.channels))):
            self.up.append(UpLevel(config, i, dim))
            dim = width
        self.norm_out = nn.GroupNorm(config.groups, dim, eps=EPS)
        self.conv_out = nn.Conv2d(dim, config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention where the level has it."""

    def __init__(self, config: VAEConfig, i: int, dim: int, blocks: int):
        super().__init__()
        width = config.channels[i]
        dims = [dim] + [width] * (blocks - 1)
        self.res = nn.ModuleList(ResBlock(d, width, groups=config.groups, eps=EPS) for d in dims)
        attends = config.attention and config.attention[i]
        self.attn = nn.ModuleList(ImageAttention(config, width) for _ in dims if attends)

    def run(self, x: Tensor) -> Tensor:
        for j, res in enumerate(self.res):
            x = self.attn[j](res(x)) if self.attn else res(x)
        return x


class DownLevel(Level):
    """A resolution of the encoder, then half the size (but for the last level)."""

    def __init__(self, config: VAEConfig, i: int, dim: int):
        super().__init__(config, i, dim, config.res_blocks)
        last = i == len(config.channels) - 1
        self.down = nn.Identity() if last else Downsample(config.channels[i], padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.run(x))


class UpLevel(Level):
    """A resolution of the decoder, then twice the size (but for the last level)."""

    def __init__(self, config: VAEConfig, i: int, dim: int):
        super().__init__(config, i, dim, config.res_blocks + 1)
        self.up = Upsample(config.channels[i]) if i else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.run(x))


class ImageAttention(nn.Module):
    """Self-attention of all pixels of x [b c h w], one head as wide as the channels, with its own skip."""

    def __init__(self, config: VAEConfig, dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, dim, eps=EPS)
        self.attn = Attention(dim, heads=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attn(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        return x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])


def mid(config: VAEConfig, dim: int) -> nn.Sequential:
    """The coarsest resolution: residual block, attention, residual block."""
    before, after = (ResBlock(dim, dim, groups=config.groups, eps=EPS) for _ in range(2))
    between = ImageAttention(config, dim) if config.mid_attention else nn.Identity()
    return nn.Sequential(before, between, after)
