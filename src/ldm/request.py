"""The door of the pipeline: arguments are checked here, at once and by name, and trusted further inside."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import InputError, KeywordError
from ldm.families import Family
from ldm.schedulers import Sampler, sampler

MOST_PIXELS = 4096 * 4096
MOST_IMAGES = 1024
OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Request:
    """One call of a pipeline with everything decided. Image i has row i of prompts, negatives and seeds."""

    prompts: list[str]
    negatives: list[str]
    seeds: list[int]
    height: int
    width: int
    steps: int
    guidance: float
    sampler: Sampler
    strength: float
    output: str

    def parameters(self, family: Family) -> list[dict[str, Any]]:
        """What each image was made with, as plain data."""
        common = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "sampler": self.sampler.name,
            "eta": self.sampler.eta,
            "width": self.width,
            "height": self.height,
            "family": family.name,
        }
        rows = zip(self.prompts, self.negatives, self.seeds, strict=True)
        return [{"prompt": p, "negative_prompt": n, "seed": s, **common} for p, n, s in rows]


def read(
    family: Family,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    *,
    height: int | None,
    width: int | None,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    num_images_per_prompt: int,
    seed: int | Sequence[int] | None,
    chosen: str | Sampler | None,
    strength: float,
    output_type: str,
) -> Request:
    """A Request from what the user wrote; None is the family's own. Raises InputError naming the argument."""
    times = whole("num_images_per_prompt", num_images_per_prompt, MOST_IMAGES)
    prompts = texts("prompt", prompt)
    negatives = per_prompt(negative_prompt, len(prompts))
    chosen = family.sampler if chosen is None else chosen
    count = len(prompts) * times
    if count > MOST_IMAGES:
        raise InputError(f"{count} images in one call are more than {MOST_IMAGES}; split the prompts")
    return Request(
        prompts=[text for text in prompts for _ in range(times)],
        negatives=[text for text in negatives for _ in range(times)],
        seeds=seeds(seed, count),
        **size(family, height, width),
        steps=whole("num_inference_steps", num_inference_steps, family.schedule.steps, family.steps),
        guidance=number("guidance_scale", guidance_scale, family.guidance),
        sampler=chosen if isinstance(chosen, Sampler) else sampler(chosen),
        strength=share("strength", strength),
        output=one_of("output_type", output_type, OUTPUTS),
    )


def refuse_unknown(unknown: dict[str, Any], known: Sequence[str]) -> None:
    """Raises KeywordError for the first unknown keyword, with the nearest known one."""
    for name in unknown:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise KeywordError(f"unknown argument {name!r}; {hint}there are {', '.join(known)}")


def texts(name: str, value: Any) -> list[str]:
    """One or several prompts as a list."""
    rows = [value] if isinstance(value, str) else value
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, str) for row in rows):
        found = type(value).__name__
        if isinstance(rows, (list, tuple)):
            found += " with " + ", ".join(
                sorted({type(row).__name__ for row in rows if not isinstance(row, str)})
            )
        raise InputError(f"{name} must be a str or a list of str, not {found}")
    if not rows:
        raise InputError(f"{name} is an empty list; give at least one str")
    for row in rows:
        try:
            row.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{name} is not valid Unicode: {error.reason} at character {error.start}"
            ) from None
    return list(rows)


def per_prompt(value: Any, count: int) -> list[str]:
    """A negative prompt for each prompt; a missing one is the empty text."""
    rows = texts("negative_prompt", "" if value is None else value)
    if len(rows) == 1:
        return rows * count
    if len(rows) != count:
        raise InputError(
            f"negative_prompt has {len(rows)} texts for {count} prompts; give one, or one per prompt"
        )
    return rows


def seeds(value: Any, count: int) -> list[int]:
    """One seed per image: seed + i from an int, drawn afresh from None."""
    if value is None:
        return torch.randint(2**31, (count,), generator=fresh()).tolist()
    if isinstance(value, (list, tuple, range, np.ndarray)):
        if len(value) != count:
            raise InputError(
                f"seed has {len(value)} numbers for {count} images; give one int, or one per image"
            )
        return [whole("seed", item, 2**63 - 1, least=0) for item in value]
    first = whole("seed", value, 2**63 - count, least=0)
    return [first + i for i in range(count)]


def fresh() -> torch.Generator:
    """A generator seeded by the operating system, so that torch's global one is left alone."""
    generator = torch.Generator()
    generator.seed()
    return generator


def size(family: Family, height: int | None, width: int | None) -> dict[str, int]:
    """Height and width in pixels, multiples of the autoencoder's factor."""
    factor = family.vae.factor
    out = {}
    for name, value in (("height", height), ("width", width)):
        pixels = whole(name, value, MOST_PIXELS, family.size)
        if pixels % factor:
            nearest = max(factor, round(pixels / factor) * factor)
            raise InputError(f"{name} {pixels} is not a multiple of {factor}; try {nearest}")
        out[name] = pixels
    if out["height"] * out["width"] > MOST_PIXELS:
        raise InputError(f"height {out['height']} × width {out['width']} is more than {MOST_PIXELS} pixels")
    return out


def start_latents(latents: Any, shape: tuple[int, ...]) -> Tensor:
    """The caller's start noise as float32, of the shape [b c h w] the request needs."""
    if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
        found = f"{type(latents).__name__} {tuple(getattr(latents, 'shape', ()))}"
        raise InputError(f"latents must be a tensor {shape}, not {found}")
    if not bool(torch.isfinite(latents).all()):
        raise InputError("latents has values that are not finite; draw it from a unit normal")
    return latents.float()


def whole(name: str, value: Any, most: int, default: int | None = None, least: int = 1) -> int:
    """A whole number from `least` to `most`; None is the default."""
    value = default if value is None else value
    try:
        if isinstance(value, bool):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, not {value!r}") from None
    if not least <= value <= most:
        raise InputError(f"{name} must be from {least} to {most}, not {value}")
    return value


def number(name: str, value: Any, default: float) -> float:
    """A finite number; None is the default."""
    value = default if value is None else value
    try:
        if not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number beyond all floats
        pass
    raise InputError(f"{name} must be a finite number, not {value!r}")


def share(name: str, value: Any) -> float:
    """A number in (0, 1]."""
    if not 0 < (value := number(name, value, 0.8)) <= 1:
        raise InputError(f"{name} must be more than 0 and at most 1, not {value}")
    return value


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of the names."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value


Callback = Callable[[int, Any, Tensor, Tensor], Any]
