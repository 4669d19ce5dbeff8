"""The diffusion network."""

from ldm.unet.config import UNetConfig
from ldm.unet.unet import UNet

__all__ = ["UNet", "UNetConfig"]
