"""The forward process: how an image becomes noise (Ho et al. 2020, eq. 4; Kingma et al. 2021, eq. 1).

q(x_t | x_0) = N(alpha_t x_0, sigma_t² I)          x_t = alpha_t x_0 + sigma_t eps,   alpha² + sigma² = 1
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, log, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.checks import dense, number
from ldm.errors import InputError

Law = Callable[[float, float, int], np.ndarray]
LEAST = 2.0**-24  # alpha, where lambda is to be finite


class Level(NamedTuple):
    """One noise level of the process."""

    t: float  # what the network is told, in training steps: 0 (clean) .. 999 (noise)
    alpha: float  # how much signal is left
    sigma: float  # how much noise was added

    @property
    def lam(self) -> float:
        """Half the log signal-to-noise ratio, lambda = log(alpha / sigma); infinite where either is 0."""
        return log(self.alpha / self.sigma) if self.alpha and self.sigma else inf if self.alpha else -inf

    @property
    def ratio(self) -> float:
        """Noise over signal: the sigma of Karras et al. (2022); infinite without signal."""
        return self.sigma / self.alpha if self.alpha else inf


CLEAN = Level(t=0.0, alpha=1.0, sigma=0.0)


class Levels(NamedTuple):
    """A level for each item of a batch: the letters of `Level` as tensors that broadcast over [b c h w]."""

    t: Tensor  # [b]
    alpha: Tensor  # [b 1 1 1]
    sigma: Tensor  # [b 1 1 1]


def scaled_linear(beta_start: float, beta_end: float, steps: int) -> np.ndarray:
    """Betas linear in their square root: every official latent diffusion model. -> float64 [steps]."""
    return np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2


def linear(beta_start: float, beta_end: float, steps: int) -> np.ndarray:
    """Betas on a straight line (Ho et al. 2020, sec. 4). -> float64 [steps]."""
    return np.linspace(beta_start, beta_end, steps)


def without_signal(betas: np.ndarray) -> np.ndarray:
    """Betas with which alpha falls to 0, shifted and scaled to begin as before (Lin et al. 2024, alg. 1)."""
    alphas = np.sqrt(np.cumprod(1.0 - betas))
    bar = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
    return 1.0 - bar / np.concatenate([[1.0], bar[:-1]])


@dataclass(frozen=True)
class Schedule:
    """The discrete variance-preserving process that a network was trained under."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    law: Law = scaled_linear
    zero_snr: bool = False  # no signal is left at the last step

    @cached_property
    def betas(self) -> np.ndarray:
        """Variance added by each training step. float64 [steps]."""
        betas = self.law(self.beta_start, self.beta_end, self.steps)
        return without_signal(betas) if self.zero_snr else betas

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """Signal power left after each training step, alpha² = prod(1 - beta). float64 [steps]."""
        return np.cumprod(1.0 - self.betas)

    @cached_property
    def alphas(self) -> np.ndarray:
        """alpha by t. float64 [steps]."""
        return np.sqrt(self.alpha_bar)

    @cached_property
    def sigmas(self) -> np.ndarray:
        """sigma by t. float64 [steps]."""
        return np.sqrt(1.0 - self.alpha_bar)

    @cached_property
    def _lam(self) -> np.ndarray:
        return np.log(np.maximum(self.alphas, LEAST) / self.sigmas)

    @cached_property
    def _times(self) -> np.ndarray:
        return np.arange(self.steps)

    @cached_property
    def _falling(self) -> np.ndarray:
        return -self._lam

    @property
    def lams(self) -> tuple[float, float]:
        """The least and the greatest lambda that can be asked for."""
        return float(self._lam[-1]), float(self._lam[0])

    def at(self, t: float) -> Level:
        """The level at time t in [0, steps - 1]; between whole steps lambda is interpolated.

        Raises InputError for a t outside.
        """
        t = number("t", t, 0, self.steps - 1)
        if self.zero_snr and t == self.steps - 1:
            return Level(t, float(self.alphas[-1]), float(self.sigmas[-1]))
        lam = float(np.interp(t, self._times, self._lam))
        return level_at(t, lam)

    def at_lam(self, lam: float) -> Level:
        """The level of a given lambda within the schedule's range: the inverse of `at`."""
        t = float(np.interp(-lam, self._falling, self._times))
        return level_at(t, lam)

    def levels(self, t: Tensor) -> Levels:
        """The levels of a batch of whole training steps t [b], on t's device, in float32.

        Raises InputError for anything but whole numbers from 0 to steps - 1.
        """
        i = dense("t", t, "a tensor [b]", (None,)).cpu().numpy()
        if i.dtype.kind not in "iu" or i.min() < 0 or i.max() >= self.steps:
            raise InputError(
                f"t must be whole training steps from 0 to {self.steps - 1}, not {i.dtype} from {i.min()} "
                f"to {i.max()}; between them there is only schedule.at(t)"
            )
        alpha, sigma = (
            torch.as_tensor(table[i], dtype=torch.float32, device=t.device).reshape(-1, 1, 1, 1)
            for table in (self.alphas, self.sigmas)
        )
        return Levels(t, alpha, sigma)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps. x0 and eps [b c h w], t [b] as in `levels`."""
        level = self.levels(t)
        return level.alpha * x0 + level.sigma * eps


def level_at(t: float, lam: float) -> Level:
    """From lambda = log(alpha / sigma) and alpha² + sigma² = 1."""
    alpha, sigma = sqrt(1.0 / (1.0 + exp(-2.0 * lam))), sqrt(1.0 / (1.0 + exp(2.0 * lam)))
    return Level(t, alpha, sigma)
