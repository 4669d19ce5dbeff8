"""The first stage: images to latents and back."""

from ldm.vae.autoencoder import VAE
from ldm.vae.config import VAEConfig

__all__ = ["VAE", "VAEConfig"]
