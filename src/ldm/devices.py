"""Where networks compute, and in what numbers."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ldm.errors import DeviceError, InputError


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


class Uninitialised(TorchFunctionMode):
    """Within it the functions of torch.nn.init give back what they were given."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def hollow() -> Iterator[None]:
    """Within it networks are built without values: shapes on the meta device, and nothing drawn."""
    with torch.device("meta"), Uninitialised(), uncollected():
        yield


@contextmanager
def uncollected() -> Iterator[None]:
    """Within it Python does not look for garbage; for where thousands of objects are made to stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
