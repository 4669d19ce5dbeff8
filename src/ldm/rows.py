"""What a call has for each of its images: a prompt, a negative one, a seed."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.checks import texts, whole
from ldm.clip.config import ClassConfig
from ldm.errors import InputError
from ldm.family import Family

Prompt = str | int | None


def some(family: Family, name: str, value: Any) -> list[Prompt]:
    """One or several prompts as a list: texts, classes, or None where there is nothing to say."""
    if not family.texts:
        if value is not None:
            raise InputError(f"{family.name} takes no {name}, as it hears none; give None")
        return [None]
    if classes := hears_classes(family):
        given = value.tolist() if isinstance(value, (np.ndarray, Tensor)) else value
        rows: list[Any] = list(given) if isinstance(given, (list, tuple, range)) else [given]
        rows = [whole(name, row, classes.classes - 1, least=0) for row in rows]
    else:
        rows = list(texts(name, value))
    if not rows:
        raise InputError(f"{name} is an empty list; give at least one str")
    return rows


def per_prompt(family: Family, value: Any, count: int) -> list[Prompt]:
    """A negative prompt for each prompt; None where it is missing."""
    if value is None:
        return [None] * count
    rows = some(family, "negative_prompt", value)
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
        return torch.randint(2**31, (count,), generator=fresh(), device="cpu").tolist()
    if isinstance(value, (list, tuple, range)) or (isinstance(value, np.ndarray) and value.ndim):
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
