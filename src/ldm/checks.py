"""Checks of one argument each, shared by all doors: what fits is given back, all else is an InputError."""

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import InputError

Shape = tuple[int | None, ...]  # None is any size but 0
REAL = re.compile(r"torch\.(bool|u?int(8|16|32|64)|b?float(16|32|64)|float8_\w+)")  # types of real numbers


def whole(name: str, value: Any, most: int, default: int | None = None, least: int = 1) -> int:
    """A whole number from `least` to `most`; None is the default."""
    value = default if value is None else value
    try:
        if isinstance(value, bool):
            raise TypeError
        value = operator.index(value)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor without values
        raise InputError(f"{name} must be a whole number, not {shown(value)}") from None
    if not least <= value <= most:
        remedy = "larger" if value < least else "smaller"
        raise InputError(f"{name} must be from {least} to {most}, not {shown(value)}; make it {remedy}")
    return value


def number(name: str, value: Any, least: float, most: float) -> float:
    """A number from `least` to `most`."""
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not least <= value <= most:
        raise InputError(f"{name} must be a number from {least} to {most}, not {shown(value)}")
    return float(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of the names."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, not {shown(value)}")
    return value


def texts(name: str, value: Any) -> list[str]:
    """One or several texts as a list."""
    rows = [value] if isinstance(value, str) else value
    if not isinstance(rows, (list, tuple)):
        raise InputError(f"{name} must be a str or a list of str, not {type(value).__name__}")
    for row in rows:
        if not isinstance(row, str):
            raise InputError(f"{name} must be a str or a list of str, not with {type(row).__name__} in it")
        try:
            row.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{name} is not valid Unicode: {error.reason} at character {error.start}; take it out"
            ) from None
    return list(rows)


def nearest(name: str, known: Iterable[str]) -> str:
    """For a message: the nearest of some names, if one is near, and all of them."""
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"there are {', '.join(names)}"


def refuse(options: Mapping[str, Any], *names: str) -> None:
    """Raises InputError for options that a task decides itself."""
    for name in names:
        if name in options:
            raise InputError(f"{name} is decided by the task itself; leave it out")


def dense(name: str, value: Any, wanted: str, *shapes: Shape) -> Tensor:
    """A tensor of one of the shapes, unchanged; it holds real numbers. `wanted` says so in the message."""
    if not (isinstance(value, Tensor) and plain(value) and any(fits(value.shape, shape) for shape in shapes)):
        raise InputError(f"{name} must be {wanted} of real numbers, not {shown(value)}")
    return value


def plain(value: Any) -> bool:
    """Whether it is a numpy array or tensor of real numbers, all of them there, that torch has a type for."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "buif" and value.dtype.itemsize <= 8
    strided = isinstance(value, Tensor) and value.layout == torch.strided
    held = strided and not (value.is_meta or value.is_nested)
    return held and REAL.fullmatch(str(value.dtype)) is not None


def floats(value: np.ndarray | Tensor) -> Tensor:
    """A plain array or tensor as float32, detached."""
    if isinstance(value, Tensor):
        return value.detach().float()
    with np.errstate(over="ignore"):  # becomes infinite, and is then out of range
        # a copy, because the array may be read-only, turned round or of another byte order
        return torch.from_numpy(np.array(value, np.float32, order="C"))


def inside(x: Tensor, least: float, most: float) -> bool:
    """Whether all values are from `least` to `most`, and numbers."""
    x = x.detach().float()
    return bool(((x >= least) & (x <= most)).all())


def are_bytes(value: np.ndarray | Tensor) -> bool:
    """Whether an array or tensor is uint8, levels from 0 to 255."""
    return str(value.dtype).removeprefix("torch.") == "uint8"


def fits(found: Sequence[int], shape: Shape) -> bool:
    return len(found) == len(shape) and all(n == m if m else n for n, m in zip(found, shape, strict=True))


def shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor) and value.is_nested:
        return "a nested tensor"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}, {value.layout} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}…"
