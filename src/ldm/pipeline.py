"""From a prompt to an image: condition, follow the path, decode."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checks import texts
from ldm.clip import TextEncoder, Tokenizer
from ldm.conditioning import Conditioning, encode_text
from ldm.denoiser import Denoiser
from ldm.errors import DeviceError, InputError, NumericError
from ldm.families import Family
from ldm.image import from_any, mask_from_any, to_numpy, to_pil, to_unit
from ldm.noise import Noise
from ldm.request import Callback, Request, decodable, encodable, read, refuse_odd, start_latents
from ldm.result import Result, merge
from ldm.schedulers import Sampler
from ldm.schedulers.solvers import Denoise
from ldm.tasks import knowing, latent_mask, noised, paste, shorten
from ldm.unet import UNet
from ldm.vae import VAE


class Dialect(NamedTuple):
    """Which of several names in use a source had."""

    text_prefix: str | None = None  # of the text encoder; None: the layout's usual one
    old_vae_attention: bool = False  # the names of diffusers before 0.17


@dataclass(frozen=True)
class Origin:
    """What a file said besides the weights in use, kept so that saving gives back every bit."""

    layout: str = ""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)  # in the file, by network/our key
    extras: dict[str, Tensor] = field(default_factory=dict)  # tensors that no network uses
    metadata: dict[str, str] = field(default_factory=dict)  # texts of a single file
    dialect: Dialect = Dialect()


class Pipeline:
    """The networks of one model and how to sample from it. May be called from several threads at once."""

    def __init__(
        self,
        family: Family,
        unet: UNet,
        vae: VAE,
        text_encoders: Sequence[TextEncoder],
        tokenizers: Sequence[Tokenizer],
        origin: Origin = Origin(),
    ):
        self.family, self.unet, self.vae = family, unet, vae
        self.text_encoders, self.tokenizers, self.origin = list(text_encoders), list(tokenizers), origin

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.conv_in.weight.device

    def __repr__(self) -> str:
        count = sum(weight.numel() for network in self.networks() for weight in network.parameters())
        dtype, device = self.unet.conv_in.weight.dtype, self.device
        return f"Pipeline({self.family.name}, {count:,} parameters, {dtype}, {device})"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Pipeline":
        """Move and convert all networks in place; returns self. Raises DeviceError and InputError."""
        target = find_device(device if device is not None else self.device)
        for network in self.networks():
            network.to(device=target, dtype=check_dtype(dtype) if dtype is not None else None)
        return self

    def networks(self) -> list[nn.Module]:
        """The UNet, the VAE and the text encoders."""
        return [self.unet, self.vae, *self.text_encoders]

    def encode(self, images: Tensor) -> Tensor:
        """Images [b 3 H W] in [-1, 1] -> latents [b c h w]: the posterior mean times the family's scale.

        H and W are multiples of `family.vae.factor`. Raises InputError for anything else.
        """
        images = encodable(self.family, images)
        return self.vae.encode(images.to(self.device, self.vae.to_moments.weight.dtype)).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b c h w] -> images [b 3 H W] in [-1, 1], float32.

        Raises InputError for anything else, and NumericError for images that are not finite.
        """
        weight = self.vae.to_moments.weight
        *_, h, w = decodable(self.family, latents).shape
        chunk = max(1, 64 * 64 // (h * w))  # small pictures together, large ones one by one
        parts = latents.to(weight.device, weight.dtype).split(chunk)
        images = torch.cat([self.vae.decode(part).float() for part in parts])
        check_finite([torch.isfinite(images).all()], "decoding")  # before clamping, which hides infinity
        return images.clamp(-1, 1)

    def condition(self, prompts: str | Sequence[str]) -> Conditioning:
        """What the UNet hears of prompts; each different prompt is encoded once."""
        prompts = texts("prompts", prompts)
        rows = list(dict.fromkeys(prompts))
        (tokenizer,), (encoder,) = self.tokenizers, self.text_encoders
        context = encode_text(tokenizer, encoder, rows).context
        return Conditioning(context[[rows.index(prompt) for prompt in prompts]])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        sampler: str | Sampler | None = None,
        latents: Tensor | None = None,
        image: Image.Image | np.ndarray | Tensor | None = None,
        mask_image: Image.Image | np.ndarray | Tensor | None = None,
        strength: float = 0.8,
        output_type: str = "pil",
        callback: Callback | None = None,
        progress: bool = True,
        **unknown: Any,
    ) -> Result:
        """Images for prompts. None means the family's own default (`pipe.family`).

        prompt, negative_prompt   str, or list of str; the negative one takes the place of the empty text
        height, width             pixels, multiples of `family.vae.factor`; at most 8192, 4096² together
        num_inference_steps       1 to 1000
        guidance_scale            w of eps_u + w (eps_c - eps_u); w <= 1 runs the conditional branch alone
        seed                      int or one per image; image i uses seed + i, alone or in a batch
        sampler                   a name or `ldm.sampler(...)`
        latents                   start noise [b c h w], unit variance, used as x_T unchanged
        image, strength           image to image: the last `int(steps * strength)` steps, strength in (0, 1];
                                  PIL, array [H W 3] in [0, 1], tensor [3 H W] in [-1, 1], or uint8 0..255
        mask_image                with image: repaint where it is white, keep all other pixels as they are;
                                  PIL, or array or tensor [H W] or [1 H W], bool, in [0, 1], or uint8 0..255
        output_type               "pil"; "np" [b H W 3] or "pt" [b 3 H W], float32 in [0, 1]; "latent"
        callback                  called with (step, level, x, x0) after every step
        Raises InputError naming the argument; NumericError, naming stage and step, for non-finite results.
        """
        refuse_odd(unknown, image=image, mask_image=mask_image, latents=latents, callback=callback)
        request = read(
            self.family, prompt, negative_prompt, height=height, width=width,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, seed=seed, chosen=sampler, strength=strength,
            output_type=output_type,
        )  # fmt: skip
        size = (request.width, request.height)
        original = None if image is None else from_any(image, size).to(self.device)
        mask = None if mask_image is None else mask_from_any(mask_image, size).to(self.device)
        steps, total = self.start(request, latents, original, mask)
        x = run(steps, total, callback, progress)
        return self.finish(request, x, original, mask)

    def start(
        self, request: Request, latents: Tensor | None, original: Tensor | None, mask: Tensor | None
    ) -> tuple[Iterator, int]:
        """The solver's steps, yielding (level, x, x0), and how many there are."""
        factor, family = self.family.vae.factor, self.family
        shape = (family.vae.latent_channels, request.height // factor, request.width // factor)
        noise = Noise(request.seeds, shape, self.device)
        if latents is not None:
            latents = start_latents(latents, (len(request.seeds), *shape)).to(self.device)
        path = request.sampler.path(family.schedule, request.steps, family.spacing, family.last)
        path = path if original is None else shorten(path, request.strength)
        denoise: Denoise = self.denoiser(request)
        x = noise() if latents is None else latents
        if original is not None:
            z = self.encode(original)
            x = noised(z, x, path)
            denoise = denoise if mask is None else knowing(denoise, z, latent_mask(mask, factor))
        steps = request.sampler.solve(denoise, x, path, noise)
        return zip(path[1:], steps, strict=True), len(path) - 1

    def denoiser(self, request: Request) -> Denoiser:
        """The function (x, level) -> x0 that solvers are handed."""
        cond = self.condition(request.prompts)
        uncond = self.condition(request.negatives) if request.guidance > 1 else None
        return Denoiser(self.unet, self.family.prediction, cond, uncond, request.guidance)

    def finish(self, request: Request, x: Tensor, original: Tensor | None, mask: Tensor | None) -> Result:
        """Decode the last latent into what the request asked for."""
        parameters = request.parameters(self.family)
        images: Any = None
        if request.output != "latent":
            images = self.decode(x)
            if original is not None and mask is not None:
                images = paste(images, original, mask)
            images = to_unit(images)
            images = images if request.output == "pt" else to_numpy(images)
            images = to_pil(images, parameters) if request.output == "pil" else images
        return Result(images, x, request.seeds, merge(parameters))


def run(steps: Iterator, total: int, callback: Callback | None, progress: bool) -> Tensor:
    """Walk the steps to the last latent, telling the callback and one progress bar."""
    if progress:
        from tqdm.auto import tqdm

        steps = tqdm(steps, total=total, desc="sampling")
    finite = []
    x = torch.empty(0, device="cpu")
    for i, (level, (x, x0)) in enumerate(steps):
        finite.append(torch.isfinite(x).all())  # read after the loop: a look inside would halt a GPU
        if callback is not None:
            callback(i, level, x, x0)
    check_finite(finite, "sampling")
    return x


def check_finite(finite: list[Tensor], stage: str) -> None:
    """Raises NumericError naming the stage and the first step that is not finite."""
    good = torch.stack(finite).tolist()
    if not all(good):
        step = f" at step {good.index(False) + 1} of {len(good)}" if len(good) > 1 else ""
        raise NumericError(f"{stage} gave values that are not finite{step}; try dtype=torch.float32")


def find_device(device: torch.device | str) -> torch.device:
    """A device that is there. Raises DeviceError."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError, ValueError, NotImplementedError, ImportError) as error:
        reason = str(error).split("\n")[0]
        raise DeviceError(f"device {device!r} cannot be used: {reason}; try device='cpu'") from error
    if found.type == "meta":
        raise DeviceError("device 'meta' holds no values, so it cannot be sampled on; try device='cpu'")
    return found


def check_dtype(dtype: Any) -> torch.dtype:
    """A floating point type that networks can compute in. Raises InputError."""
    allowed = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    if not isinstance(dtype, torch.dtype) or dtype not in allowed:
        raise InputError(f"dtype must be one of {', '.join(map(str, allowed))}, not {dtype!r}")
    return dtype
