"""What a latent diffusion model is trained by: its losses, what a step draws, averages and learning rates.

losses        the diffusion loss and its weightings; losses by noise level
draws         times, offset noise and dropped texts, from random numbers handed in
autoencoding  reconstruction, KL and VQ; the latent scale
adversarial   the patch discriminator and the weight of its judgement
ema           the running mean of the weights
rates         the learning rate over a run
"""

from ldm.training.adversarial import HINGE, NON_SATURATING, Adversarial, PatchGAN, adaptive_weight
from ldm.training.autoencoding import (
    Perceptual,
    gaussian_kl,
    gradient_difference,
    l1,
    l2,
    quantised,
    sampled,
    scale_of,
)
from ldm.training.draws import dropped, logit_normal, offset, stratified, times
from ldm.training.ema import Average
from ldm.training.losses import (
    ByTime,
    Weight,
    debiased,
    diffusion_loss,
    min_snr,
    on_target,
    p2,
    truncated_snr,
    uniform,
)
from ldm.training.rates import Rate, rate

__all__ = [
    "Adversarial", "Average", "ByTime", "HINGE", "NON_SATURATING", "PatchGAN", "Perceptual", "Rate", "Weight",
    "adaptive_weight", "debiased", "diffusion_loss", "dropped", "gaussian_kl", "gradient_difference", "l1",
    "l2", "logit_normal", "min_snr", "offset", "on_target", "p2", "quantised", "rate", "sampled", "scale_of",
    "stratified", "times", "truncated_snr", "uniform",
]  # fmt: skip
