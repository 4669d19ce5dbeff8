"""From a prompt to an image: condition, follow the path, decode."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.adapters import Adapted
from ldm.checks import texts
from ldm.conditioning import Conditioning, encode_classes, tell
from ldm.denoiser import Denoiser, Guidance, grouped
from ldm.details import NAMES, Details
from ldm.image import to_numpy, to_pil, to_unit
from ldm.model import Model
from ldm.noise import Brownian, Draws, Noise
from ldm.parameters import reused
from ldm.parts import between, knowing, latent_mask, noised, paste, shorten
from ldm.philox import Philox
from ldm.pictures import Pictures, grown, starts_at_image
from ldm.prompts import by_length, encode_weighted
from ldm.request import Callback, Request, decodable, encodable, read, refuse_odd, start_latents
from ldm.result import Result, merge
from ldm.rows import hears_classes, some
from ldm.schedulers import Sampler
from ldm.schedulers.reverse import Draw, Motion
from ldm.schedulers.solvers import Denoise
from ldm.schedulers.spacing import Path
from ldm.sight import SEES, Sight
from ldm.trajectory import Trajectory
from ldm.walk import check_finite, run


class Pipeline(Adapted):
    """A model and how to sample from it. May be called from several threads at once."""

    @classmethod
    def of(cls, model: Model) -> "Pipeline":
        """A pipeline of the networks of a model."""
        return cls(model.family, model.unet, model.vae, model.text_encoders, model.tokenizers, model.origin)

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

    def condition(
        self, prompts: Any, details: Details | None = None, negative: bool = False, chunks: int = 1
    ) -> Conditioning:
        """What the UNet hears of prompts, texts or classes; each different one is encoded once.

        details   what the vector of SDXL tells; None: a whole picture of the family's size
        negative  whether it is told of what is not wanted: the negative score
        chunks    how many at least a text is cut into or filled up to
        """
        if hears_classes(self.family):
            return Conditioning(encode_classes(self.text_encoders[0], some(self.family, "prompts", prompts)))
        prompts = texts("prompts", prompts)
        rows = list(dict.fromkeys(prompts))
        details = details or Details.of(self.family.size, self.family.size)
        context, pooled = encode_weighted(
            self.tokenizers, self.text_encoders, rows, details.prompt_weights, chunks
        )
        order = [rows.index(prompt) for prompt in prompts]
        if pooled is None or not self.family.vector:
            return Conditioning(context[order])
        numbers = details.numbers(self.family.vector, negative)
        return Conditioning(context[order], tell(pooled[order], numbers, self.family))

    def unconditional(self, request: Request, cond: Conditioning, chunks: int = 1) -> Conditioning:
        """What the UNet hears of the negative prompts; where they miss, what the family has instead."""
        negatives, count = request.negatives, len(request.negatives)
        if None not in negatives:
            return self.condition(negatives, request.details, negative=True, chunks=chunks)
        if (classes := hears_classes(self.family)) is not None:
            return self.condition([classes.empty] * count)
        if not self.family.blank or cond.context is None or cond.vector is None:
            return self.condition([""] * count, request.details, negative=True, chunks=chunks)
        pooled = torch.zeros_like(cond.vector[:, : self.family.texts[-1].pooled])
        numbers = request.details.numbers(self.family.vector)
        return Conditioning(torch.zeros_like(cond.context), tell(pooled, numbers, self.family))

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        negative_prompt: Any = None,
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
        strength: float | None = None,
        depth_map: np.ndarray | Tensor | None = None,
        output_type: str = "pil",
        callback: Callback | None = None,
        progress: bool = True,
        record: bool = False,
        **details: Any,
    ) -> Result:
        """Images for prompts. None means the family's own default (`pipe.family`).

        prompt, negative_prompt   str of any length, or list of str; a class or list of them for models of
                                  classes; None for those that hear none. A missing negative is the family's
        height, width             pixels, multiples of `family.unit`; at most 8192, 4096² together
        num_inference_steps       1 to 1000
        guidance_scale            w of eps_u + w (eps_c - eps_u); w <= 1 runs the conditional branch alone
        seed                      int or one per image; image i uses seed + i, alone or in a batch
        sampler                   a name or `ldm.sampler(...)`
        latents                   start noise [b c h w], unit variance, used as x_T unchanged
        image, strength           image to image: the last `int(steps * strength)` steps, strength in (0, 1];
                                  PIL, array [H W 3] in [0, 1], tensor [3 H W] in [-1, 1], or uint8 0..255;
                                  what to edit, or the small picture, for models that are made for that
        mask_image                with image: repaint where it is white, keep all other pixels as they are;
                                  PIL, or array or tensor [H W] or [1 H W], bool, in [0, 1], or uint8 0..255
        depth_map                 array or tensor [H W] or [1 H W] of any range, for models that see depth
        output_type               "pil"; "np" [b H W 3] or "pt" [b 3 H W], float32 in [0, 1]; "latent"
        callback                  called with (step, level, x, x0) after every step
        record                    whether result.trajectory keeps x, x0, eps and level of every step
        details                   the fields of `ldm.details.Details`, of which some are only some families'
        Raises InputError naming the argument; NumericError, naming stage and step, for non-finite results.
        """
        given = Pictures(image, mask_image, depth_map)
        known = {name: details.pop(name, None) for name in NAMES}
        refuse_odd(self.family, details, given, latents=latents, callback=callback)
        height, width = grown(self.family, image, height, width)
        request = read(
            self.family, prompt, negative_prompt, height=height, width=width,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, seed=seed, chosen=sampler, strength=strength,
            output_type=output_type, details=known,
        )  # fmt: skip
        pictures = given.read(self.family, request.height, request.width).to(self.device)
        x, moments = run(*self.start(request, latents, pictures), callback, progress, record)
        result = self.finish(request, x, pictures)
        return replace(result, trajectory=Trajectory(moments, self.decode)) if record else result

    def from_png(self, png: Any, **changes: Any) -> Result:
        """The image that a PNG file tells the parameters of, again or with changes: arguments of a call.

        Raises InputError as `ldm.parameters` and a call do, for another family's, and if image is missing.
        """
        return self(**reused(png, changes, self.family.name))

    def start(
        self, request: Request, latents: Tensor | None, pictures: Pictures
    ) -> tuple[Tensor, Path, Iterator]:
        """The first x, the path, and the solver's steps along it, yielding (x, x0)."""
        factor, family, details = self.family.vae.factor, self.family, request.details
        shape = (family.vae.latent_channels, request.height // factor, request.width // factor)
        noise = (Philox if details.noise == "philox" else Noise)(request.seeds, shape, self.device)
        path = request.sampler.path(family.schedule, request.steps, family.spacing, family.last)
        path = between(path, family.schedule, details.denoising_start, details.denoising_end)
        from_image = pictures.image is not None and starts_at_image(family)
        painted_anew = family.beside == "inpaint" and request.strength == 1
        if from_image and not painted_anew and details.denoising_start == 0:
            path = shorten(path, request.strength)
        start = None if latents is None else start_latents(latents, (len(request.seeds), *shape))
        denoise: Denoise = self.denoiser(request, pictures, noise)
        x = noise() if start is None else start.to(self.device)
        if from_image:
            z = self.encode(pictures.image)
            x = x if painted_anew else noised(z, x, path)
            if pictures.mask is not None and family.beside != "inpaint":
                denoise = knowing(denoise, z, latent_mask(pictures.mask, factor))
        draws: Draw | Motion = noise
        if request.sampler.brownian:
            draws = Brownian(request.seeds, shape, *family.schedule.lams, self.device)
        steps = request.sampler.solve(denoise, x, path, draws)
        return x, path, steps

    def denoiser(self, request: Request, pictures: Pictures, noise: Draws) -> Denoise:
        """The function (x, level) -> x0 that solvers are handed; rows of as many chunks are one batch."""
        seen = self.beside(request, pictures, noise)
        said = list(zip(request.prompts, request.negatives, strict=True))
        groups, parts = by_length(self.tokenizers, said, request.details.prompt_weights), []
        for chunks, rows in groups.items():  # apart, so that no image depends on the length of other prompts
            parts.append(
                (rows, self.guided(request.part(rows), None if seen is None else seen[rows], chunks))
            )
        return grouped(parts)

    def guided(self, request: Request, seen: Tensor | None, chunks: int) -> Denoiser:
        """The denoiser of prompts of one length."""
        family, told, label, middle = self.family, request.details, None, None
        cond = self.condition(request.prompts, told, chunks=chunks) if family.texts else Conditioning()
        uncond = self.unconditional(request, cond, chunks) if request.guidance > 1 else None
        if family.unet.labels:
            label = torch.full((len(request.seeds),), told.noise_level, device=self.device)
        cond = cond._replace(beside=seen, label=label)
        if uncond is not None:
            uncond = uncond._replace(beside=seen, label=label)
            if family.beside == "edit" and seen is not None:
                middle = uncond, told.image_guidance_scale
                uncond = uncond._replace(beside=torch.zeros_like(seen))
        guidance = Guidance(
            request.guidance, told.guidance_rescale, told.guidance_interval, told.dynamic_threshold
        )
        return Denoiser(self.unet, family.prediction, cond, uncond, guidance, middle)

    def beside(self, request: Request, pictures: Pictures, noise: Draws) -> Tensor | None:
        """What the UNet sees beside the latent, for each image. [b c h w]"""
        family, factor = self.family, self.family.vae.factor
        if not family.beside:
            return None
        size = (request.height // factor, request.width // factor)
        level = family.schedule.at(request.details.noise_level)
        seen = SEES[family.beside](Sight(*pictures, size, family, self.encode, noise, level))
        return seen.expand(len(request.seeds), -1, -1, -1)

    def finish(self, request: Request, x: Tensor, pictures: Pictures) -> Result:
        """Decode the last latent into what the request asked for."""
        said = request.parameters(self.family, pictures.image is not None)
        images: Any = None
        if request.output != "latent":
            images = self.decode(x)
            if pictures.image is not None and pictures.mask is not None and self.family.beside != "inpaint":
                images = paste(images, pictures.image, pictures.mask)
            images = to_unit(images)
            images = images if request.output == "pt" else to_numpy(images)
            images = to_pil(images, said) if request.output == "pil" else images
        return Result(images, x, request.seeds, merge(said))
