"""How a latent diffusion model is trained, from its losses to runs of several processes.

losses        the diffusion loss and its weightings; losses by noise level
draws         times, offset noise and dropped texts, from random numbers handed in
diffusion     all of that joined: batch -> the loss of each image
autoencoding  reconstruction, KL and VQ; the latent scale; adversarial: the patch discriminator
data          folders, buckets, shards; cache: latents and text features that are computed once
ema, rates    the running mean of the weights; the learning rate over a run
lora          low-rank changes; inversion: the vectors of a new word
loop          steps, checkpoints, resuming; session and recipes: runs from settings
distributed   DDP and FSDP2
"""

from ldm.training.adversarial import HINGE, NON_SATURATING, Adversarial, PatchGAN, adaptive_weight
from ldm.training.autoencoder import Autoencoding, VaeSettings
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
from ldm.training.cache import Latents, Texts, fill
from ldm.training.data import Batch, Batches
from ldm.training.diffusion import Diffusion
from ldm.training.draws import dropped, logit_normal, offset, stratified, times
from ldm.training.ema import Average
from ldm.training.fresh import from_nothing
from ldm.training.images import Images
from ldm.training.inversion import TextualInversion
from ldm.training.lora import LoRA
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
from ldm.training.recipes import train_diffusion, train_inversion, train_lora, train_vae
from ldm.training.settings import (
    Data,
    DiffusionSettings,
    InversionSettings,
    LoraSettings,
    Settings,
    Sheet,
)
from ldm.training.shards import Shards

__all__ = [
    "Adversarial", "Autoencoding", "Average", "Batch", "Batches", "ByTime", "Data", "Diffusion",
    "DiffusionSettings", "HINGE", "Images", "InversionSettings", "Latents", "LoRA", "LoraSettings",
    "NON_SATURATING", "PatchGAN", "Perceptual", "Rate", "Settings", "Shards", "Sheet", "TextualInversion",
    "Texts", "VaeSettings", "Weight", "adaptive_weight", "debiased", "diffusion_loss", "dropped", "fill",
    "from_nothing", "gaussian_kl", "gradient_difference", "l1", "l2", "logit_normal", "min_snr", "offset",
    "on_target", "p2", "quantised", "rate", "sampled", "scale_of", "stratified", "times", "train_diffusion",
    "train_inversion", "train_lora", "train_vae", "truncated_snr", "uniform",
]  # fmt: skip
