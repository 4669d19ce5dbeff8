"""How a module is made to compute what another function does.

A module has its own method from then on, which does not hold the module: else each would hold the other, and
memory would be freed whenever Python looks for such circles, not when a pipeline is gone.
"""

from collections.abc import Callable
from typing import Any
from weakref import ref

from torch import nn

from ldm.errors import InputError


class Method:
    """function(module, *more, …). A deep copy of the module has a copy of this; a shallow one has this."""

    def __init__(self, function: Callable[..., Any], module: nn.Module, *more: Any):
        self.function, self.module, self.more = function, ref(module), more

    def __call__(self, *given: Any, **named: Any) -> Any:
        module = self.module()
        if module is None:
            raise InputError("the module that this was a method of is gone; keep it, or make a deepcopy")
        return self.function(module, *self.more, *given, **named)

    def __reduce__(self) -> tuple[Any, ...]:
        return Method, (self.function, self.module(), *self.more)


def take(module: nn.Module, function: Callable[..., Any], *more: Any, name: str = "forward") -> None:
    """Let function(module, *more, …) be a method of a module, which is `packed` from then on."""
    setattr(module, name, Method(function, module, *more))
    module.packed = True  # type: ignore[assignment]
