"""Generators that follow a path of levels from noise to image."""

from ldm.schedulers.solvers.ddim import Denoise, ddim

__all__ = ["Denoise", "ddim"]
