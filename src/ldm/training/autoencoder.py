"""The autoencoder as it is trained, alone or against a discriminator D: batch -> the loss of each image.

    L_G = rec(x, y) + w perceptual(x, y) + regularisation(z) + a lambda adv(D(y)),      y = decoder(z)
    L_D = disc(D(x), D(y))

(Rombach et al. 2022, eq. 25; Esser et al. 2021, eq. 5 to 7.) Both players learn from one backward pass, of

    L = L_G(y; sg D) + L_D(x, sg y),     dL / d autoencoder = dL_G / d autoencoder,     dL / dD = dL_D / dD,

as neither half has a gradient to the other's weights. So the loop knows one loss, one optimiser and one step:
both players move at once, from the same place, where the published code lets them take turns.

What the data say of z: see `reconstruction`. The single terms: `autoencoding`, `adversarial`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ldm.checks import number, one_of, whole
from ldm.errors import InputError
from ldm.ranks import Ranks
from ldm.training.adversarial import HINGE, NON_SATURATING, PatchGAN, adaptive_weight
from ldm.training.autoencoding import (
    Perceptual,
    gaussian_kl,
    l1,
    l2,
    quantised,
    sampled,
)
from ldm.training.data import Batch
from ldm.training.draws import of_rows
from ldm.training.ema import trained
from ldm.training.fresh import seeded
from ldm.training.perceptual import PERCEPTUALS, perceptual_of, unlearnt
from ldm.training.settings import MOST, Settings
from ldm.vae import VAE

RECONSTRUCTIONS: dict[str, Perceptual] = {"l1": l1, "l2": l2}
ADVERSARIALS = {"hinge": HINGE, "non_saturating": NON_SATURATING}
TRAINED = ("both", "decoder")


@dataclass(frozen=True)
class VaeSettings(Settings):
    """What a run of the autoencoder is told besides. Errors are means over the numbers of an image."""

    betas: tuple[float, ...] = (0.5, 0.9)  # of AdamW; these two are Esser et al.'s
    decay: float = 0.0  # of the autoencoder's weights; the discriminator's never decay
    clip: float = 0.0  # most of the gradient's norm, of both players together; 0, as in their code: anything
    train: str = "both"  # or "decoder": latents, and codes, stay what diffusion models know
    reconstruction: str = "l1"  # or "l2"
    perceptual: str = "gradients"  # or "none"; or "lpips", which needs the extra `lpips` and downloads VGG-16
    perceptual_weight: float = 1.0
    kl: float = 1e-6  # of KL in nats beside errors summed over an image, as in the paper; here kl / (c H W)
    beta: float = 0.25  # with a codebook: how much z is drawn to its codes, which are drawn to z with 1
    adversarial: float = 0.0  # weight beside lambda, 0.5 in the paper's code; 0: no discriminator
    adversarial_loss: str = "hinge"  # or "non_saturating"
    judged_from: int = 0  # the first step, from 0, in which there is a discriminator, heard and trained
    judge_width: int = 64  # channels of the discriminator after its first convolution
    judge_rate: float = 1.0  # the discriminator's learning rate, in terms of `rate`
    scale_images: int = 1024  # from which the scale is measured at the end; 0, or train=decoder: it stays


class Autoencoding(nn.Module):
    """autoencoding(batch, rows) -> the loss L of each image, float32 [b], whose mean is back-propagated.

    vae         its parameters are given gradients, or not, as `settings.train` says
    ranks       lambda is the same on all of them: its gradients are means over their images
    perceptual  instead of the settings' own; if a module it is not trained, nor moved: have it on the device

    batch  of images
    rows   the images' numbers in the endless row of the run: noise depends on them and the seed, and the
           step is rows[0] // settings.batch
    Raises InputError.
    """

    discriminator: nn.Module | None

    def __init__(
        self, vae: VAE, settings: VaeSettings, ranks: Ranks = Ranks(), perceptual: Perceptual | None = None
    ):
        super().__init__()
        check(settings)
        self.vae, self.settings, self.ranks = vae, settings, ranks
        self.distance = RECONSTRUCTIONS[settings.reconstruction]
        given = perceptual_of(settings.perceptual, ranks.device) if perceptual is None else perceptual
        self.perceptual = partial(unlearnt, given) if isinstance(given, nn.Module) else given
        self.adversarial = ADVERSARIALS[settings.adversarial_loss]
        vae.requires_grad_(settings.train == "both")
        for part in (vae.from_latent, vae.decoder):
            part.requires_grad_(True)
        self.discriminator = None
        if settings.adversarial:
            self.discriminator = discriminator_of(vae, settings, ranks)
        self.parts: dict[str, Tensor] = {}

    def forward(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        x = batch.images.to(self.last.device, non_blocking=True)
        z, regular, weight = self.latent(x, rows)
        with self.autocast():
            y = self.vae.decoder(self.vae.from_latent(z))
        y = y.to(x.dtype)
        rec, far = self.distance(x, y), self.perceptual(x, y)
        if far.shape != rec.shape:
            raise InputError(
                f"perceptual must give one distance for each image, {list(rec.shape)}, not {list(far.shape)}"
            )
        near = rec + self.settings.perceptual_weight * far
        loss = near + weight * regular
        parts = {"rec": rec, "perceptual": far, "commitment" if self.vae.codebook else "kl": regular}
        if self.discriminator is not None:
            joined = rows[0] // self.settings.batch >= self.settings.judged_from
            judge = self.discriminator
            heard, more = self.judged(judge, x, y, near.mean()) if joined else (unheard(judge), {})
            loss, parts = loss + heard, parts | more
        self.parts = {name: part.detach().float().mean() for name, part in parts.items()}
        return loss

    def latent(self, x: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor, float]:
        """What is decoded [b c h w]; what keeps it in bounds, KL or commitment [b]; and its weight."""
        with self.autocast():
            mean, logvar = self.vae.moments(x)
        mean = mean.to(x.dtype)
        if self.vae.codebook is not None:
            return *quantised(self.vae.codebook, mean, self.settings.beta), 1.0
        assert logvar is not None
        logvar = logvar.to(x.dtype)
        _, (eps,) = of_rows(self.settings.seed, rows, 0, mean.shape[1:])
        z = sampled(mean, logvar, eps.to(mean, non_blocking=True))
        return z, gaussian_kl(mean, logvar), self.settings.kl / x[0].numel()

    def judged(
        self, judge: nn.Module, x: Tensor, y: Tensor, near: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """a lambda adv(sg D(y)) + disc(D(x), D(sg y)) [b], and the parts; lambda: adv beside `near`."""
        new = {name: buffer.clone() for name, buffer in judge.named_buffers()}
        with self.autocast():
            heard = unlearnt(judge, y)
            real, fake = (functional_call(judge, new, (images,)) for images in (x, y.detach()))
        for name, own in judge.named_buffers():
            # a step that is not finite is none, and running statistics would never recover from it
            own.copy_(torch.where(new[name].isfinite().all(), new[name], own))
        adv = self.adversarial.generator(heard.to(x.dtype))
        disc = self.adversarial.discriminator(real.to(x.dtype), fake.to(x.dtype))
        lam = adaptive_weight(near, adv.mean(), self.last, self.ranks)
        return self.settings.adversarial * lam * adv + disc, {"adv": adv, "disc": disc, "lambda": lam}

    def told(self) -> dict[str, float]:
        """The parts of the last loss, unweighted, and lambda; means over this rank's images. Waits for a GPU.

        rec, perceptual, kl (nats) or commitment; where there is a discriminator adv, disc and lambda.
        """
        if not self.parts:
            return {}
        return dict(zip(self.parts, torch.stack(list(self.parts.values())).tolist(), strict=True))

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """What an optimiser is to change: the autoencoder at this rate, the discriminator at its own."""
        found: list[dict[str, Any]] = [{"params": list(trained(self.vae).values()), "lr": rate}]
        if self.discriminator is not None:
            own = list(self.discriminator.parameters())
            found.append({"params": own, "lr": rate * self.settings.judge_rate, "weight_decay": 0.0})
        return found

    @property
    def last(self) -> Tensor:
        """The weight of the decoder's last layer, where lambda is measured."""
        return self.vae.decoder.conv_out.weight

    def autocast(self) -> AbstractContextManager:
        """bfloat16 where that is asked for."""
        on = self.settings.precision == "bf16"
        return torch.autocast(self.last.device.type, torch.bfloat16, enabled=on)


def check(settings: VaeSettings) -> None:
    """Raises InputError for what makes no sense, by its field; `settings.check` knows the other fields."""
    one_of("train", settings.train, TRAINED)
    one_of("reconstruction", settings.reconstruction, tuple(RECONSTRUCTIONS))
    one_of("perceptual", settings.perceptual, PERCEPTUALS)
    one_of("adversarial_loss", settings.adversarial_loss, tuple(ADVERSARIALS))
    for name in ("perceptual_weight", "kl", "beta", "adversarial", "judge_rate"):
        number(name, getattr(settings, name), 0, 1e6)
    whole("judge_width", settings.judge_width, 4096)
    for name in ("judged_from", "scale_images"):
        whole(name, getattr(settings, name), MOST, least=0)
    if settings.spread == "fsdp":
        raise InputError("spread=fsdp is for diffusion models; an autoencoder needs spread=ddp")
    if settings.overfit and settings.adversarial and settings.judged_from:
        raise InputError(
            f"overfit repeats step 0, and judged_from {settings.judged_from} comes later; make it 0"
        )


def discriminator_of(vae: VAE, settings: VaeSettings, ranks: Ranks) -> nn.Module:
    """A discriminator before its first step; on several GPUs its norms see the images of all of them."""
    with seeded(settings.seed):
        made: nn.Module = PatchGAN(vae.config.image_channels, settings.judge_width)
    if ranks.size > 1 and ranks.device.type == "cuda":  # torch has no other
        made = nn.SyncBatchNorm.convert_sync_batchnorm(made)
    return made.to(vae.from_latent.weight)


def unheard(judge: nn.Module) -> Tensor:
    """0: DDP waits for every gradient, and with one of 0 and no decay AdamW leaves a weight as it is."""
    return 0 * torch.stack([p.sum() for p in judge.parameters()]).sum()
