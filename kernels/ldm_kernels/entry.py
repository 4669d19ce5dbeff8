"""How a network that is made ready begins."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.methods import take

LAST = torch.channels_last


def enter(network: nn.Module, run: Callable[..., Tensor]) -> None:
    """Let run(x, …) be what a network computes: on the device of x, whose channels lie last."""
    take(network, entered, run)


@torch.compiler.disable  # there is nothing left to compile
def entered(network: nn.Module, run: Callable[..., Tensor], x: Tensor, *more: Any, **named: Any) -> Tensor:
    """run(x, …)."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise InputError("what is packed has no gradients; load without fast=True, or use no_grad()")
    with torch.cuda.device_of(x):
        return run(x.contiguous(memory_format=LAST), *more, **named)
