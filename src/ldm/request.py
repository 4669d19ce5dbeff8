"""The door of the pipeline: arguments are checked here, at once and by name, and trusted further inside."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.checks import dense, nearest, number, one_of, whole
from ldm.details import MOST_GUIDANCE, NAMES, Details, read_details
from ldm.errors import InputError, KeywordError
from ldm.family import Family
from ldm.pictures import Pictures
from ldm.rows import Blend, Prompt, Variation, blends, check_guidance, per_prompt, seeds, some, variations
from ldm.schedulers import Sampler, sampler
from ldm.schedulers.spacing import name_of

MOST_PIXELS = 4096 * 4096
MOST_SIDE = 8192  # pixels
MOST_IMAGES = 1024
OUTPUTS = ("pil", "np", "pt", "latent")
WAYS = ("variation_seed", "variation_strength", "blend_prompt", "blend")  # one or one per image
KEYWORDS = (
    "prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale",
    "num_images_per_prompt", "seed", "sampler", "latents", "image", "mask_image", "strength",
    "output_type", "callback", "progress", "record", "depth_map", *WAYS, *NAMES,
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One call of a pipeline with everything decided. Image i has row i of all lists.

    A prompt is a text, the number of a class, or None, as the family has it. A missing negative one is None.
    """

    prompts: list[Prompt]
    negatives: list[Prompt]
    seeds: list[int]
    variations: list[Variation]
    blends: list[Blend]
    height: int
    width: int
    steps: int
    guidance: float
    sampler: Sampler
    strength: float
    output: str
    details: Details

    def part(self, rows: Sequence[int]) -> "Request":
        """The same of some of the images."""
        return replace(
            self,
            prompts=[self.prompts[i] for i in rows],
            negatives=[self.negatives[i] for i in rows],
            seeds=[self.seeds[i] for i in rows],
            variations=[self.variations[i] for i in rows],
            blends=[self.blends[i] for i in rows],
        )

    @property
    def spoken(self) -> list[tuple[Prompt, Prompt]]:
        """What each image hears: a prompt and, where it is on its way to another, that one, else None."""
        rows = zip(self.prompts, self.blends, strict=True)
        return [(b.prompt, None) if b.share == 1 else (own, b.prompt if b.share else None) for own, b in rows]

    @property
    def told(self) -> list[str]:
        """The details that are not the default."""
        plain = Details.of(self.height, self.width)
        return [name for name in NAMES if getattr(self.details, name) != getattr(plain, name)]

    def parameters(self, family: Family, given: Sequence[str] = ()) -> list[dict[str, Any]]:
        """What each image was made with, as plain data; given: the arguments that are none."""
        common = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "sampler": self.sampler.name,
            "eta": self.sampler.eta,
            **({"spacing": name_of(self.sampler.spacing)} if self.sampler.spacing else {}),
            **({"strength": self.strength} if "image" in given else {}),
            **({"given": tuple(given)} if given else {}),
            "width": self.width,
            "height": self.height,
            "family": family.name,
            **{name: getattr(self.details, name) for name in self.told},
        }
        varied = any(v.seed is not None for v in self.variations)
        blended = any(b.prompt is not None for b in self.blends)
        rows = zip(self.prompts, self.negatives, self.seeds, self.variations, self.blends, strict=True)
        return [
            {"prompt": p, "negative_prompt": n, "seed": s, **common}
            | ({"variation_seed": v.seed, "variation_strength": v.share} if varied else {})
            | ({"blend_prompt": b.prompt, "blend": b.share} if blended else {})
            for p, n, s, v, b in rows
        ]


def read(
    family: Family,
    prompt: Any,
    negative_prompt: Any,
    *,
    height: int | None,
    width: int | None,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    num_images_per_prompt: int,
    seed: int | Sequence[int] | None,
    chosen: str | Sampler | None,
    strength: float | None,
    output_type: str,
    ways: dict[str, Any],
    details: dict[str, Any],
) -> Request:
    """A Request from what the user wrote; None is the family's own. Raises InputError naming the argument."""
    times = whole("num_images_per_prompt", num_images_per_prompt, MOST_IMAGES)
    prompts = some(family, "prompt", prompt)
    negatives = per_prompt(family, negative_prompt, len(prompts))
    chosen = family.sampler if chosen is None else chosen
    walk = chosen if isinstance(chosen, Sampler) else sampler(chosen)
    steps = whole(
        "num_inference_steps", num_inference_steps, family.schedule.steps, walk.steps or family.steps
    )
    if walk.steps not in (None, steps):
        raise InputError(
            f"num_inference_steps {steps}, but the sampler was given {walk.steps} levels; leave it out"
        )
    count = len(prompts) * times
    if count > MOST_IMAGES:
        raise InputError(f"{count} images in one call are more than {MOST_IMAGES}; split the prompts")
    sides = size(family, height, width)
    guidance = number(
        "guidance_scale",
        family.guidance if guidance_scale is None else guidance_scale,
        -MOST_GUIDANCE,
        MOST_GUIDANCE,
    )
    check_guidance(family, guidance, negatives)
    return Request(
        prompts=[text for text in prompts for _ in range(times)],
        negatives=[text for text in negatives for _ in range(times)],
        seeds=seeds(seed, count),
        variations=variations(ways.get("variation_seed"), ways.get("variation_strength"), count),
        blends=blends(family, ways.get("blend_prompt"), ways.get("blend"), times, count),
        **sides,
        steps=steps,
        guidance=guidance if family.texts else 1.0,
        sampler=walk,
        strength=share("strength", family.strength if strength is None else strength),
        output=one_of("output_type", output_type, OUTPUTS),
        details=read_details(family, sides["height"], sides["width"], details),
    )


def refuse_odd(
    family: Family, unknown: Iterable[str], given: Pictures, *, latents: Any, callback: Any
) -> None:
    """Raises KeywordError for an unknown keyword, with the nearest known one; InputError for a callback that
    is no function, and for arguments that do not go together.
    """
    refuse_unknown(unknown)
    given.check(family)
    if given.image is not None and latents is not None and family.beside in ("", "depth"):
        raise InputError("image and latents are two different starts; give one of them")
    if callback is not None and not callable(callback):
        raise InputError(f"callback must be a function (step, level, x, x0), not {type(callback).__name__}")


def refuse_unknown(names: Iterable[str]) -> None:
    """Raises KeywordError for names that a call does not know, with the nearest known one."""
    for name in names:
        raise KeywordError(f"unknown argument {name!r}; {nearest(name, KEYWORDS)}")


def size(family: Family, height: int | None, width: int | None) -> dict[str, int]:
    """Height and width in pixels, multiples of `family.unit`."""
    unit = family.unit
    out = {}
    for name, value in (("height", height), ("width", width)):
        pixels = whole(name, value, MOST_SIDE, family.size)
        if pixels % unit:
            nearest = max(unit, round(pixels / unit) * unit)
            raise InputError(f"{name} {pixels} is not a multiple of {unit}; try {nearest}")
        out[name] = pixels
    if out["height"] * out["width"] > MOST_PIXELS:
        raise InputError(
            f"height {out['height']} × width {out['width']} is more than {MOST_PIXELS} pixels; "
            "make either smaller"
        )
    return out


def start_latents(latents: Any, shape: tuple[int, ...]) -> Tensor:
    """The caller's start noise as float32, of the shape [b c h w] the request needs."""
    x = dense("latents", latents, f"a tensor {shape}", shape).float()
    if not bool(torch.isfinite(x).all()):
        raise InputError("latents has values that are not finite; draw it from a unit normal")
    return x


def share(name: str, value: Any) -> float:
    """A number in (0, 1]."""
    if (value := number(name, value, 0, 1)) == 0:
        raise InputError(f"{name} must be more than 0 and at most 1, not 0; raise it")
    return value


Callback = Callable[[int, Any, Tensor, Tensor], Any]
