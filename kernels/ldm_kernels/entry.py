"""How a module is made to compute what another function does.

A module has its own forward from then on, which must not have the module: else each would hold the other, and
memory would be freed whenever Python looks for such circles, not when a pipeline is gone.
"""

from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from ldm.errors import InputError

LAST = torch.channels_last


def bound(forward: Callable[..., Tensor], module: nn.Module, *more: Any) -> Callable[..., Tensor]:
    """forward(module, *more, …), which does not keep the module."""
    own = ref(module)

    def run(*given: Any, **named: Any) -> Tensor:
        return forward(own(), *more, *given, **named)

    return run


def replace(module: nn.Module, forward: Callable[..., Tensor], *more: Any) -> None:
    """Let forward(module, *more, x, …) be what a module computes."""
    module.forward = bound(forward, module, *more)  # type: ignore[method-assign]


def enter(network: nn.Module, run: Callable[..., Tensor]) -> None:
    """Let run(x, …) be what a network computes: on the device of x, whose channels lie last.

    torch.compile leaves it alone: there is nothing left to compile.
    """

    def forward(x: Tensor, *more: Any, **named: Any) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise InputError("what is packed has no gradients; load without fast=True, or use no_grad()")
        with torch.cuda.device_of(x):
            return run(x.contiguous(memory_format=LAST), *more, **named)

    network.forward = torch.compiler.disable(forward)  # type: ignore[method-assign]
