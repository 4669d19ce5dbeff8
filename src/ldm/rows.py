"""What a call has for each of its images: a prompt, a negative one, a seed."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.checks import number, texts, whole
from ldm.clip.config import ClassConfig
from ldm.errors import InputError
from ldm.family import Family

Prompt = str | int | None


class Variation(NamedTuple):
    """How far an image's noise is on its way to another seed's."""

    seed: int | None = None
    share: float = 0.0


class Blend(NamedTuple):
    """How far an image's prompt is on its way to another."""

    prompt: Prompt = None
    share: float = 0.0


def some(family: Family, name: str, value: Any) -> list[Prompt]:
    """One or several prompts as a list: texts, classes, or None where there is nothing to say."""
    if not family.texts:
        if value is not None:
            raise InputError(f"{family.name} takes no {name}, as it hears none; give None")
        return [None]
    if classes := hears_classes(family):
        given = several(value)
        rows: list[Any] = [value] if given is None else given
        rows = [whole(name, row, classes.classes - 1, least=0) for row in rows]
    else:
        rows = list(texts(name, value))
    if not rows:
        raise InputError(f"{name} is an empty list; give at least one str")
    return rows


def per_prompt(family: Family, value: Any, count: int, name: str = "negative_prompt") -> list[Prompt]:
    """A negative prompt for each prompt; None where it is missing."""
    if value is None:
        return [None] * count
    rows = some(family, name, value)
    if len(rows) == 1:
        return rows * count
    if len(rows) != count:
        raise InputError(f"{name} has {len(rows)} texts for {count} prompts; give one, or one per prompt")
    return rows


def seeds(value: Any, count: int, name: str = "seed") -> list[int]:
    """One seed per image: seed + i from an int, drawn afresh from None."""
    if value is None:
        return torch.randint(2**31, (count,), generator=fresh(), device="cpu").tolist()
    if (given := several(value)) is not None:
        if len(given) != count:
            raise InputError(
                f"{name} has {len(given)} numbers for {count} images; give one int, or one per image"
            )
        return [whole(name, item, 2**63 - 1, least=0) for item in given]
    first = whole(name, value, 2**63 - count, least=0)
    return [first + i for i in range(count)]


def variations(seed: Any, strength: Any, count: int) -> list[Variation]:
    """One per image: `variation_seed` + i from an int, drawn afresh from None; strength as in `shares`."""
    if strength is None:
        if seed is not None:
            raise InputError("variation_seed needs variation_strength, from 0 to 1")
        return [Variation()] * count
    return list(
        map(Variation, seeds(seed, count, "variation_seed"), shares("variation_strength", strength, count))
    )


def blends(family: Family, prompt: Any, share: Any, times: int, count: int) -> list[Blend]:
    """One per image: `blend_prompt`, one or one per prompt; share as in `shares`."""
    if (prompt is None) != (share is None):
        raise InputError("blend_prompt and blend, how far to go to it, are given together")
    if prompt is None:
        return [Blend()] * count
    rows = [row for row in per_prompt(family, prompt, count // times, "blend_prompt") for _ in range(times)]
    return list(map(Blend, rows, shares("blend", share, count)))


def shares(name: str, value: Any, count: int) -> list[float]:
    """Numbers from 0 to 1, one for all images or one per image."""
    if (given := several(value)) is not None:
        if len(given) != count:
            raise InputError(
                f"{name} has {len(given)} numbers for {count} images; give one, or one per image"
            )
        return [number(name, row, 0, 1) for row in given]
    return [number(name, value, 0, 1)] * count


def several(value: Any) -> list[Any] | None:
    """What is given as a list, tuple, range, array or tensor; None for a thing alone."""
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim:
        return list(value.tolist())
    return list(value) if isinstance(value, (list, tuple, range)) else None


def silent(family: Family) -> str | None:
    """The prompt that says nothing: an empty text, or None where none is heard."""
    return "" if family.texts else None


def fresh() -> torch.Generator:
    """A generator seeded by the operating system, so that torch's global one is left alone."""
    generator = torch.Generator()
    generator.seed()
    return generator


def check_guidance(family: Family, guidance: float, negatives: list[Prompt]) -> None:
    """Raises InputError where guidance is asked of a family that has nothing to be guided away from."""
    classes = hears_classes(family)
    if guidance > 1 and classes and classes.empty is None and None in negatives:
        raise InputError(
            f"{family.name} has no class that stands for none; give negative_prompt, or guidance_scale=1"
        )


def hears_classes(family: Family) -> ClassConfig | None:
    """The classes of a family whose prompts are classes."""
    config = family.texts[0].config if family.texts else None
    return config if isinstance(config, ClassConfig) else None
