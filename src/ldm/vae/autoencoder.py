"""The KL autoencoder: an image as a small latent, and back (Rombach et al. 2022, sec. 3.1 and app. G).

    q(z | x) = N(mean(x), exp(logvar(x)))          x ≈ decoder(z)

The latent that the diffusion model sees is `scale * z`; the scale lives in this file and nowhere else.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.attention import Attention
from ldm.layers import Downsample, ResBlock, Upsample
from ldm.vae.config import VAEConfig

EPS = 1e-6  # of every GroupNorm in the autoencoder; the UNet's residual blocks have 1e-5


class VAE(nn.Module):
    """Images [b 3 H W] in [-1, 1] <-> latents [b c h w] of about unit variance; H = h * factor."""

    def __init__(self, config: VAEConfig = VAEConfig()):
        super().__init__()
        self.config = config
        latent = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.to_moments = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.from_latent = nn.Conv2d(latent, latent, 1)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, unscaled, of q(z | x). [b 3 H W] in [-1, 1] -> two of [b c h w]."""
        mean, logvar = self.to_moments(self.encoder(images)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, images: Tensor) -> Tensor:
        """The scaled mean of q(z | x). [b 3 H W] in [-1, 1] -> [b c h w]."""
        return self.moments(images)[0] * self.config.scale

    def decode(self, latents: Tensor) -> Tensor:
        """[b c h w] scaled -> images [b 3 H W], in about [-1, 1] and not clamped."""
        return self.decoder(self.from_latent(latents / self.config.scale))


class Encoder(nn.Module):
    """[b 3 H W] -> [b 2c h w], the moments before their last 1×1 convolution."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        *_, deepest = config.channels
        self.conv_in = nn.Conv2d(config.image_channels, config.channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        dim = config.channels[0]
        for i, width in enumerate(config.channels):
            self.down.append(DownLevel(config, dim, width, last=i == len(config.channels) - 1))
            dim = width
        self.mid = mid(config, deepest)
        self.norm_out = nn.GroupNorm(config.groups, deepest, eps=EPS)
        self.conv_out = nn.Conv2d(deepest, 2 * config.latent_channels, 3, padding=1)

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
            self.up.append(UpLevel(config, dim, width, last=i == 0))
            dim = width
        self.norm_out = nn.GroupNorm(config.groups, dim, eps=EPS)
        self.conv_out = nn.Conv2d(dim, config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class DownLevel(nn.Module):
    """One resolution of the encoder: residual blocks, then half the size (but for the last level)."""

    def __init__(self, config: VAEConfig, dim: int, width: int, *, last: bool):
        super().__init__()
        self.res = res_blocks(config, dim, width, config.res_blocks)
        self.down = nn.Identity() if last else Downsample(width, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        for res in self.res:
            x = res(x)
        return self.down(x)


class UpLevel(nn.Module):
    """One resolution of the decoder: residual blocks, then twice the size (but for the last level)."""

    def __init__(self, config: VAEConfig, dim: int, width: int, *, last: bool):
        super().__init__()
        self.res = res_blocks(config, dim, width, config.res_blocks + 1)
        self.up = nn.Identity() if last else Upsample(width)

    def forward(self, x: Tensor) -> Tensor:
        for res in self.res:
            x = res(x)
        return self.up(x)


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
    return nn.Sequential(before, ImageAttention(config, dim), after)


def res_blocks(config: VAEConfig, dim: int, width: int, count: int) -> nn.ModuleList:
    """`count` residual blocks, the first of which goes from `dim` to `width` channels."""
    dims = [dim] + [width] * (count - 1)
    return nn.ModuleList(ResBlock(d, width, groups=config.groups, eps=EPS) for d in dims)
