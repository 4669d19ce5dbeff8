"""Several ways to compute the same: which is the fastest is measured once for each kind of inputs.

It is measured when they are first met, some milliseconds a way, and remembered as long as Python runs; so
that nothing is slower than by PyTorch alone. A way that cannot, or whose result is another, is left out.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton.testing
from torch import Tensor
from triton.runtime.errors import TritonError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels then run on a CPU, slowly
APART = 0.02  # |a - b| / |b| of two ways: roundings to bfloat16 are a tenth of it
TINY = 1e-12  # so that zeros are what zeros are
Way = Callable[..., Tensor]
log = logging.getLogger("ldm")


class Contest:
    """Ways to compute the same of the same arguments, tensors or others; a call takes the fastest.

    name   what it is that they compute
    ways   by their names: the first is a kernel of this project
    plain  PyTorch's own, by which the others are judged
    """

    def __init__(self, name: str, ways: Mapping[str, Way], plain: Way):
        self.name, self.ways, self.plain = name, {**ways, "plain": plain}, plain
        self.first = next(iter(self.ways))
        self.chosen: dict[tuple[Any, ...], str] = {}  # what was the fastest of a kind

    def __call__(self, *given: Any) -> Tensor:
        """By the fastest way; under the interpreter by the kernel."""
        return self.ways[self.first if INTERPRETED else self.fastest(*given)](*given)

    def fastest(self, *given: Any) -> str:
        """The name of the way that is the fastest for such arguments."""
        key = tuple(map(kind, given))
        if key not in self.chosen:
            if torch.cuda.is_current_stream_capturing():  # nothing can be measured now, and nothing is noted
                return "plain"
            self.chosen[key] = self.measured(*given)
        return self.chosen[key]

    @torch.no_grad()
    def measured(self, *given: Any) -> str:
        """The name of the fastest of those that compute the same as PyTorch."""
        wanted = self.plain(*given)
        able = {name: way for name, way in self.ways.items() if self.right(name, wanted, *given)}
        try:
            times = {name: milliseconds(way, *given) for name, way in able.items()}
        except torch.OutOfMemoryError:  # measuring takes some memory of its own
            return "plain"
        log.debug("%s of %s: %s ms", self.name, [kind(x) for x in given], times)
        return min(times, key=times.__getitem__, default="plain")

    def right(self, name: str, wanted: Tensor, *given: Any) -> bool:
        """Whether a way can, and computes what is wanted."""
        try:
            found = self.ways[name](*given)
        except (RuntimeError, TritonError) as error:  # also how PyTorch says that a kernel is none for these
            log.debug("%s by %s: %s", self.name, name, error)
            return False
        apart, whole = (torch.linalg.vector_norm(x, dtype=torch.float32) for x in (found - wanted, wanted))
        gap = float(apart / whole.clamp(min=TINY))
        if not gap <= APART:
            log.warning("%s by %s is %.2g from what PyTorch computes, and is not used", self.name, name, gap)
        return gap <= APART


def milliseconds(way: Way, *given: Any) -> float:
    """The median time of a way."""
    time: float = triton.testing.do_bench(lambda: way(*given), warmup=5, rep=20, return_mode="median")
    return time


def kind(x: Any) -> Any:
    """All of an argument that a time can depend on."""
    return (x.device, x.dtype, x.shape, x.stride()) if isinstance(x, Tensor) else x
