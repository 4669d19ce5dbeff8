"""The diffusion loss: the forward process once, and the network asked what was done (Ho et al. 2020, eq. 14).

    x_t  = alpha_t x0 + sigma_t eps
    loss = w |predict(x_t, t) - target(x0, eps, t)|²

What a network outputs, it says about x0 (`prediction.py`), so each weighting is stated once, as the weight of
|x0' - x0|² at a signal-to-noise ratio SNR = alpha² / sigma², and brought to the network's own target by

    w = weight(SNR) (d x0 / d out)²          (d x0 / d out)² = 1 / SNR for eps, sigma² for v, 1 for x0

Limits. SNR is taken from 2^-48 to 2^48: where alpha or sigma is 0, each weight is its limit, to rounding.
What grows without limit, `truncated_snr` and `debiased` of x0 without noise and of eps without signal, is cut
at 1e4, more than Stable Diffusion's schedule asks for. Without signal eps says nothing of x0: take v there.
"""

from collections.abc import Callable

import torch
from einops import rearrange, reduce
from torch import Tensor

from ldm.checks import whole
from ldm.errors import InputError
from ldm.schedulers import Levels, Prediction, Schedule
from ldm.schedulers.forward import LEAST

Weight = Callable[[Levels, Prediction], Tensor]  # -> [b], the weight of the squared error of the target
MOST = 1e4  # of a weight


def uniform(level: Levels, prediction: Prediction) -> Tensor:
    """1 on the network's own target, whichever that is (Ho et al. 2020, eq. 14). -> [b], float32."""
    return torch.ones_like(flat(level.alpha))


def diffusion_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    schedule: Schedule,
    prediction: Prediction,
    weight: Weight = uniform,
) -> Tensor:
    """The weighted squared error of what a network says about noisy latents (Rombach et al. 2022, eq. 2).

    predict  (x_t [b c h w], t [b]) -> what `prediction` says it outputs [b c h w]
    x0       [b c h w] clean latents, scaled as the network is to see them
    eps      [b c h w] unit noise
    t        [b] whole training steps; from the CPU they go to x0's device, which is then not waited for
    weight   uniform, min_snr, …, or `functools.partial(min_snr, gamma=1)`
    Returns  [b] the mean over c h w of each image, float32
    Raises InputError where shapes differ and for a t outside the schedule.
    """
    x0, eps = x0.float(), eps.float()
    t, alpha, sigma = (each.to(x0.device, non_blocking=True) for each in schedule.levels(t))
    level = Levels(t, alpha, sigma)
    if x0.ndim != 4 or x0.shape != eps.shape or len(x0) != len(t):
        raise InputError(
            f"x0 {list(x0.shape)} and eps {list(eps.shape)} must be of one shape [b c h w], with t [b], not "
            f"{list(t.shape)}; give each image its own noise and its own step"
        )
    x = level.alpha * x0 + level.sigma * eps
    out = predict(x, t).float()
    if out.shape != x.shape:
        raise InputError(
            f"predict must return the shape it is given, {list(x.shape)}, not {list(out.shape)}; leave out a "
            "learnt variance"
        )
    error = out - prediction.target(x0, eps, level)
    return weight(level, prediction) * reduce(error.square(), "b c h w -> b", "mean")


def min_snr(level: Levels, prediction: Prediction, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) on x0, so that steps of little noise do not outweigh all others. -> [b], float32.

    On eps this is min(SNR, gamma) / SNR, on v min(SNR, gamma) / (SNR + 1) (Hang et al. 2023, sec. 3.4).
    """
    return on_target(snr(level).clamp(max=gamma), level, prediction)


def truncated_snr(level: Levels, prediction: Prediction) -> Tensor:
    """max(SNR, 1) on x0, the greater of the errors of eps and x0 (Salimans & Ho 2022, sec. 4). -> [b]."""
    return on_target(snr(level).clamp(min=1.0), level, prediction)


def p2(level: Levels, prediction: Prediction, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """SNR / (k + SNR)^gamma on x0, 1 / (k + SNR)^gamma on eps (Choi et al. 2022). -> [b], float32."""
    return on_target(snr(level) / (k + snr(level)) ** gamma, level, prediction)


def debiased(level: Levels, prediction: Prediction) -> Tensor:
    """sqrt(SNR) on x0, 1 / sqrt(SNR) on eps (Yu et al. 2023). -> [b], float32."""
    return on_target(snr(level).sqrt(), level, prediction)


def on_target(weight: Tensor, level: Levels, prediction: Prediction) -> Tensor:
    """A weight [b 1 1 1] of the squared error of x0, as that of the network's own target. -> [b]."""
    zero = torch.zeros_like(level.alpha)
    slope = prediction.x0(zero, zero + 1, bounded(level))  # x0 is straight in out, and 0 where x and out are
    return flat((weight * slope.square()).clamp(max=MOST))


def snr(level: Levels) -> Tensor:
    """alpha² / sigma², from 2^-48 to 2^48. [b 1 1 1]."""
    level = bounded(level)
    return (level.alpha / level.sigma).square()


def bounded(level: Levels) -> Levels:
    """The levels with some signal and some noise."""
    return Levels(level.t, level.alpha.clamp(min=LEAST), level.sigma.clamp(min=LEAST))


def flat(each: Tensor) -> Tensor:
    return rearrange(each, "b 1 1 1 -> b")


class ByTime:
    """The mean loss of each of `bins` equal parts of the schedule, gathered over many batches.

    Nothing is fetched from the device before `means`.
    Raises InputError for more bins than steps.
    """

    def __init__(self, schedule: Schedule, bins: int = 10, device: torch.device | str = "cpu"):
        self.steps, self.bins = schedule.steps, whole("bins", bins, schedule.steps)
        self.sums = torch.zeros(self.bins, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)

    def add(self, t: Tensor, losses: Tensor) -> None:
        """Take in the losses [b] of images at the steps t [b]."""
        part = t.to(self.sums.device).long() * self.bins // self.steps
        losses = losses.detach().to(self.sums)
        self.sums.index_add_(0, part, losses)
        self.counts.index_add_(0, part, torch.ones_like(losses))

    def means(self) -> Tensor:
        """The mean loss of each part, from clean to noise; NaN where there was none. [bins], float64."""
        return self.sums / self.counts

    def starts(self) -> list[int]:
        """The first step of each part."""
        return [-(-self.steps * k // self.bins) for k in range(self.bins)]
