"""Generators that follow a path of levels from noise to image."""

from ldm.schedulers.solvers.ddim import Denoise, Steps, ddim
from ldm.schedulers.solvers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde
from ldm.schedulers.solvers.inverse import invert
from ldm.schedulers.solvers.lcm import lcm
from ldm.schedulers.solvers.slopes import dpm_2, heun, lms, plms
from ldm.schedulers.solvers.uni_pc import uni_pc

__all__ = [
    "Denoise", "Steps", "ddim", "dpm_2", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "heun",
    "invert", "lcm", "lms", "plms", "uni_pc",
]  # fmt: skip
