"""Two of the three things that are trained: the UNet, on given texts and latents; and the decoder.

painter    loss = |unet(x_t, t, text) - target|²,     x_t = alpha_t x0 + sigma_t eps, target by the prediction
decoder    loss = |decode(z) - x| + (decode(z) - x)²,      z = the latent of x, and a little noise
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from captions import describe
from loop import Loss, Part, Plan, generators
from patches import Projection, project, set_encoder
from torch import Tensor, nn
from world import Scene, draw, pairs_seen, sample_scene

from ldm.clip import CLIPConfig, TextEncoder, Tokenizer
from ldm.schedulers import Schedule, V
from ldm.unet import UNet, UNetConfig
from ldm.vae import VAE, VAEConfig

LENGTH = 32  # tokens a prompt is padded to
SCHEDULE = Schedule(beta_end=0.02)  # ends darker than SD: at 0.012 the ground still shines through the noise
PREDICTION = V


@dataclass(frozen=True)
class Recipe:
    """All that decides what is trained; `Plan` says for how long."""

    vae: VAEConfig = VAEConfig(channels=(32, 48, 64), res_blocks=1, latent_channels=16, groups=16, scale=1.0)
    unet: UNetConfig = UNetConfig(
        in_channels=16,
        out_channels=16,
        channels=(48, 96),
        depth=(0, 1),
        res_blocks=1,
        context_dim=96,
        heads=3,
        groups=16,
    )
    width: int = 96  # of the text encoder
    layers: int = 3  # of the text encoder
    seed: int = 0
    scenes: int = 50_000  # distinct training scenes
    reader_batch: int = 128
    blur: float = 0.1  # the most noise on latents, in standard deviations, while the decoder is trained
    decoder_batch: int = 8
    batch: int = 24
    high: float = 0.7  # t = 1000 u^high, u uniform; below 1: more of the high noise, where the text decides
    drop: float = 0.1  # how often the prompt is left empty, for guidance
    reader_plan: Plan = field(default_factory=lambda: Plan(steps=600, lr=2e-3))
    decoder_plan: Plan = field(default_factory=lambda: Plan(minutes=8, lr=1.5e-3))
    painter_plans: tuple[Plan, ...] = (  # each begins with the averaged weights of the one before
        Plan(minutes=85, lr=1.8e-3, ema=0.998),
        Plan(minutes=15, lr=8e-4, ema=0.998),
        Plan(minutes=108, lr=1.5e-3, ema=0.998, muon=True),
        Plan(minutes=12, lr=8e-4, ema=0.998, muon=True),
        Plan(minutes=75, lr=1.5e-3, ema=0.998, muon=True),
        Plan(minutes=20, lr=8e-4, ema=0.998, muon=True),
    )

    def text(self, vocab: int) -> CLIPConfig:
        """The text encoder for a tokenizer of `vocab` tokens."""
        return CLIPConfig(
            width=self.width, layers=self.layers, heads=3, hidden=4 * self.width, vocab=vocab, length=LENGTH
        )


class Parts(NamedTuple):
    """All that is trained, and the tokenizer."""

    unet: UNet
    vae: VAE
    text: TextEncoder
    tokenizer: Tokenizer


def to_tensor(scenes: list[Scene]) -> Tensor:
    """Pictures of scenes: [b 3 64 64] in [-1, 1]."""
    pixels = torch.from_numpy(np.stack([draw(scene) for scene in scenes]))
    return pixels.movedim(-1, 1).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def start_vae(recipe: Recipe, projection: Projection) -> VAE:
    """A seeded autoencoder whose encoder is done and whose decoder has not begun."""
    torch.manual_seed(recipe.seed)
    vae = VAE(recipe.vae)
    for name, p in vae.named_parameters():
        if "conv2." in name or "attn.out." in name:
            nn.init.zeros_(p)
    set_encoder(vae, projection)
    return vae


def learned(vae: VAE) -> nn.ModuleList:
    """What of the autoencoder is trained: the decoder and its door."""
    return nn.ModuleList([vae.from_latent, vae.decoder])


def cropped(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A random quarter of each picture. [b c H W] -> [b c H/2 W/2]."""
    half = images.shape[-1] // 2
    corners = rng.integers(half + 1, size=(len(images), 2)).tolist()
    return torch.stack(
        [image[:, y : y + half, x : x + half] for image, (y, x) in zip(images, corners, strict=True)]
    )


def pictures(recipe: Recipe, step: int, rng: np.random.Generator) -> Tensor:
    """What the decoder learns from in a step: quarters of many pictures, or every fourth time few whole ones.

    Colours are what it learns last; a step on quarters sees four times as many of them in the same time.
    Crowded scenes teach it most per pixel. [b 3 H W] in [-1, 1].
    """
    pairs, whole = pairs_seen(), step % 4 == 3
    number = recipe.decoder_batch if whole else 4 * recipe.decoder_batch
    layouts = ["three" if rng.random() < 0.6 else "two" for _ in range(number)]
    x = to_tensor([sample_scene(rng, layout, pairs) for layout in layouts])
    return (x if whole else cropped(x, rng)).contiguous(memory_format=torch.channels_last)


def decoder_loss(vae: VAE, projection: Projection, recipe: Recipe, device: str) -> Loss:
    """The decoder's loss of a step, on latents with a little noise: what the painter paints is not exact."""

    def loss(step: int) -> list[Part]:
        rng, generator = generators(recipe.seed + 1, step)
        x = pictures(recipe, step, rng)
        z = project(x.contiguous(), projection)
        noise = recipe.blur * torch.rand((len(z), 1, 1, 1), generator=generator)
        z = z + noise * torch.randn(z.shape, generator=generator)
        pairs = split(device, z.to(device, memory_format=torch.channels_last), x.to(device))
        return [lambda z=z, x=x: distance(vae.decode(z), x) for z, x in pairs]

    return loss


def split(device: str, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The batch in halves, one for each of two CPU threads; whole on a GPU."""
    parts = 2 if device == "cpu" and len(tensors[0]) > 1 else 1
    return list(zip(*(tensor.chunk(parts) for tensor in tensors), strict=True))


def distance(y: Tensor, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Mean absolute plus mean squared error; for the log, that sum and the PSNR. Both [b 3 H W]."""
    error = y - x
    mse = error.square().mean()
    value = error.abs().mean() + mse
    psnr = 10 * torch.log10(4 / mse)
    return value, {"loss": value.item(), "psnr": psnr.item()}


def start_text(recipe: Recipe, vocab: int) -> TextEncoder:
    """A seeded text encoder for a tokenizer of `vocab` tokens, before its first step."""
    torch.manual_seed(recipe.seed)
    text = TextEncoder(recipe.text(vocab))
    nn.init.normal_(text.tokens.weight, std=0.3)
    nn.init.normal_(text.positions.weight, std=0.1)
    return text


def start_unet(recipe: Recipe) -> UNet:
    """A seeded UNet before its first step: every residual branch begins as nothing."""
    torch.manual_seed(recipe.seed)
    unet = UNet(recipe.unet)
    for name, p in unet.named_parameters():
        if "conv2." in name or "proj_out." in name or "conv_out." in name:
            nn.init.zeros_(p)
    return unet


def painter_loss(
    unet: UNet,
    text: TextEncoder,
    tokenizer: Tokenizer,
    scenes: list[Scene],
    latents: Tensor,
    recipe: Recipe,
    device: str,
) -> Loss:
    """The diffusion loss of a step: fresh words for old scenes, fresh noise."""

    def loss(step: int) -> list[Part]:
        rng, generator = generators(recipe.seed, step)
        picks = rng.choice(len(scenes), size=recipe.batch)
        texts = [describe(scenes[i], rng).text if rng.random() >= recipe.drop else "" for i in picks]
        x0 = latents[torch.from_numpy(picks)].float()
        eps = torch.randn(x0.shape, generator=generator)
        u = (rng.permutation(recipe.batch) + rng.random(recipe.batch)) / recipe.batch
        t = SCHEDULE.steps * u**recipe.high
        whole = (x0, eps, torch.from_numpy(t).long(), tokenizer(texts))
        each = split(device, *(value.to(device) for value in whole))
        return [lambda values=values: part(*values) for values in each]

    def part(x0: Tensor, eps: Tensor, t: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, float]]:
        level = SCHEDULE.levels(t)
        x = (level.alpha * x0 + level.sigma * eps).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            context = text(ids)
        value = (unet(x, t, context) - PREDICTION.target(x0, eps, level)).square().mean()
        return value, {"loss": value.item()}

    return loss
