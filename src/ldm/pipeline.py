"""From a prompt to an image: condition, follow the path, decode."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.coding import decode, encode
from ldm.conditioning import Conditioning
from ldm.details import NAMES
from ldm.drawing import drawing, moving
from ldm.hearing import condition, denoiser
from ldm.inversions import Taught, added_tokens
from ldm.model import Model
from ldm.packed import is_packed
from ldm.parameters import parameters, reused
from ldm.parts import between, knowing, latent_mask, noised, paste, shorten
from ldm.pictures import Pictures, grown, starts_at_image
from ldm.request import WAYS, Callback, Request, read, refuse_odd, start_latents
from ldm.result import Result, merge, presented
from ldm.schedulers import Sampler
from ldm.schedulers.spacing import Path
from ldm.trajectory import Trajectory
from ldm.walk import run

log = logging.getLogger("ldm")


class Pipeline(Taught):
    """A model and how to sample from it. May be called from several threads at once."""

    @classmethod
    def of(cls, model: Model) -> "Pipeline":
        """A pipeline of the networks of a model."""
        return cls(model.family, model.unet, model.vae, model.text_encoders, model.tokenizers, model.origin)

    def encode(self, images: Tensor, tile: int = 0) -> Tensor:
        """Images [b 3 H W] in [-1, 1] -> latents [b c h w]: the posterior mean times the family's scale.

        H and W are multiples of `family.vae.factor`; tile: as of a call. Raises InputError for anything else.
        """
        return encode(self, images, tile)

    def decode(self, latents: Tensor, tile: int = 0) -> Tensor:
        """Latents [b c h w] -> images [b 3 H W] in [-1, 1], float32; tile: as of a call.

        Raises InputError for anything else, and NumericError for images that are not finite.
        """
        return decode(self, latents, tile)

    def condition(self, prompts: Any) -> Conditioning:
        """What the UNet hears of prompts, texts or classes, of images of the family's size."""
        return condition(self, prompts)

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
        latents                   start noise [b c h w], unit variance, used as x_T unchanged; if it requires
                                  grad, result.latents and images of "pt" have one, else nothing has
        image, strength           image to image: the last `int(steps * strength)` steps, strength in (0, 1];
                                  PIL, array [H W 3] in [0, 1], tensor [3 H W] in [-1, 1], or uint8 0..255;
                                  what to edit, or the small picture, for models that are made for that
        mask_image                with image: repaint where it is white, keep all other pixels as they are;
                                  PIL, or array or tensor [H W] or [1 H W], bool, in [0, 1], or uint8 0..255
        depth_map                 array or tensor [H W] or [1 H W] of any range, for models that see depth
        output_type               "pil"; "np" [b H W 3] or "pt" [b 3 H W], float32 in [0, 1]; "latent"
        callback                  called with (step, level, x, x0) after every step
        record                    whether result.trajectory keeps x, x0, eps and level of every step
        details                   the fields of `ldm.details.Details`, of which some are only some families';
                                  variation_seed and variation_strength, how far the noise is on the way to
                                  another seed's; blend_prompt and blend, the same of the prompt
        Raises InputError naming the argument; NumericError, naming stage and step, for non-finite results.
        """
        given = Pictures(image, mask_image, depth_map)
        ways, known = ({name: details.pop(name, None) for name in names} for names in (WAYS, NAMES))
        refuse_odd(self.family, details, given, latents=latents, callback=callback)
        height, width = grown(self.family, image, height, width)
        request = read(
            self.family, prompt, negative_prompt, height=height, width=width,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt, seed=seed, chosen=sampler, strength=strength,
            output_type=output_type, ways=ways, details=known,
        )  # fmt: skip
        pictures = given.read(self.family, request.height, request.width).to(self.device)
        asked = isinstance(latents, Tensor) and latents.requires_grad
        with torch.set_grad_enabled(asked and torch.is_grad_enabled()):
            x, moments = run(*self.start(request, latents, pictures), callback, progress, record)
            result = self.finish(request, x, pictures, given.names(latents))
        way = Trajectory(moments, partial(self.decode, tile=request.details.tile)) if record else None
        return replace(result, trajectory=way)

    def from_png(self, png: Any, **changes: Any) -> Result:
        """The image that a PNG file tells the parameters of, again or with changes: arguments of a call.

        The logger "ldm" warns where other LoRAs or tokens were on the model. Raises InputError as
        `ldm.parameters` and a call do, for another family's, and if image is missing.
        """
        arguments, was, now = reused(png, changes, self.family), parameters(png), self.additions()
        for name in ("lora", "tokens"):
            if was.get(name) != now.get(name):
                log.warning("drawn with %s %s, but %s is on the model", name, was.get(name), now.get(name))
        return self(**arguments)

    def additions(self) -> dict[str, Any]:
        """What was put on the model, for the parameters of its pictures: LoRAs with their weights, tokens."""
        loras = {name: weight for name, (_, weight) in self.adapters.changes.items()}
        tokens = added_tokens(self)
        return ({"lora": loras} if loras else {}) | ({"tokens": tokens} if tokens else {})

    def start(
        self, request: Request, latents: Tensor | None, pictures: Pictures
    ) -> tuple[Tensor, Path, Iterator]:
        """The first x, the path, and the solver's steps along it, yielding (x, x0)."""
        factor, family, details = self.family.vae.factor, self.family, request.details
        shape = (family.vae.latent_channels, request.height // factor, request.width // factor)
        noise = drawing(request, shape, self.device)
        path = request.sampler.path(family.schedule, request.steps, family.spacing, family.last)
        path = between(path, family.schedule, details.denoising_start, details.denoising_end)
        from_image = pictures.image is not None and starts_at_image(family)
        painted_anew = family.beside == "inpaint" and request.strength == 1
        if from_image and not painted_anew and details.denoising_start == 0:
            path = shorten(path, request.strength)
        start = None if latents is None else start_latents(latents, (len(request.seeds), *shape))
        # of a plain network each level is embedded alone, as in a loop of one's own
        ts = [level.t for level in path] if is_packed(self.unet) else []
        denoise = denoiser(self, request, pictures, noise, ts)
        x = noise() if start is None else start.to(self.device)
        if from_image:
            z = encode(self, pictures.image, details.tile)
            x = x if painted_anew else noised(z, x, path)
            if pictures.mask is not None and family.beside != "inpaint":
                denoise = knowing(denoise, z, latent_mask(pictures.mask, factor))
        self.rest()  # the text encoders have spoken
        draws = moving(request, shape, family.schedule, self.device) if request.sampler.brownian else noise
        return x, path, request.sampler.solve(denoise, x, path, draws)

    def finish(self, request: Request, x: Tensor, pictures: Pictures, given: Sequence[str] = ()) -> Result:
        """Decode the last latent into what the request asked for; given: as of `Request.parameters`."""
        said = [row | self.additions() for row in request.parameters(self.family, given)]
        images: Any = None
        if request.output != "latent":
            images = decode(self, x, request.details.tile)
            self.rest()
            if pictures.image is not None and pictures.mask is not None:
                images = paste(images, pictures.image, pictures.mask)
            images = presented(images, request.output, said)
        return Result(images, x, request.seeds, merge(said))
