"""Several ways to compute the same: which is the fastest is measured once for each kind of inputs.

It is measured when they are first met, some milliseconds a way, and remembered as long as Python runs; so
that nothing is slower than by PyTorch alone. A way that cannot, or whose result is another, is left out.
Where nothing can be told, as memory is short or PyTorch's own result is not finite, PyTorch computes this
time, and nothing is remembered.
"""

import logging
import os
from collections.abc import Callable, Mapping
from statistics import median
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import TritonError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels then run on a CPU, slowly
APART = 0.02  # |a - b| / |b| of two ways: roundings to bfloat16 are a tenth of it
TINY = 1e-12  # so that zeros are what zeros are
AHEAD = 8_000_000  # cycles, some 4 ms, that the device waits while the host launches
ROUNDS, CALLS, SAMPLE = 5, 20, 3.0  # samples of a way, of so many calls at most, milliseconds of a sample
Way = Callable[..., Tensor]
log = logging.getLogger("ldm")
alone = RLock()  # of the whole process: who measures, records a graph, or lets cuDNN try its convolutions


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
        if key in self.chosen:
            return self.chosen[key]
        if torch.cuda.is_current_stream_capturing():  # nothing can be measured now, and nothing is noted
            return "plain"
        with alone:
            found = self.chosen.get(key) or self.measured(*given)  # another thread may have been here
            if found is None:
                return "plain"
            self.chosen[key] = found
        return found

    @torch.no_grad()
    def measured(self, *given: Any) -> str | None:
        """The name of the fastest of those that compute what PyTorch does; None if none can be told now."""
        try:
            wanted = self.plain(*given)
            if not size(wanted).isfinite():
                return None
            able = {name: way for name, way in self.ways.items() if self.right(name, wanted, *given)}
            times = {name: milliseconds(way, *given) for name, way in able.items()}
        except torch.OutOfMemoryError as error:  # ways and the comparison take memory of their own
            log.debug("%s is not measured: %s", self.name, error)
            return None
        log.debug("%s of %s: %s ms", self.name, [kind(x) for x in given], times)
        return min(times, key=times.__getitem__, default="plain")

    def right(self, name: str, wanted: Tensor, *given: Any) -> bool:
        """Whether a way can, and computes what is wanted. Raises OutOfMemoryError."""
        try:
            found = self.ways[name](*given)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TritonError) as error:  # also how PyTorch says that a kernel is none for these
            level = logging.WARNING if name == self.first else logging.DEBUG
            log.log(level, "%s by %s fails, and is not used: %s", self.name, name, error)
            return False
        gap = float(size(found - wanted) / size(wanted).clamp(min=TINY))
        if not gap <= APART:
            log.warning("%s by %s is %.2g from what PyTorch computes, and is not used", self.name, name, gap)
        return gap <= APART


def size(x: Tensor) -> Tensor:
    """|x|, which is finite if all numbers are."""
    return torch.linalg.vector_norm(x, dtype=torch.float32)


def milliseconds(way: Way, *given: Any) -> float:
    """The median time of a way on the device, without that of launching it."""

    def timed(calls: int) -> float:
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD)
        begun.record()
        for _ in range(calls):
            way(*given)
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended) / calls

    calls = max(1, min(CALLS, int(SAMPLE / max(timed(1), 1e-3))))
    return median(timed(calls) for _ in range(ROUNDS))


def kind(x: Any) -> Any:
    """All of an argument that a time can depend on."""
    return (x.device, x.dtype, x.shape, x.stride()) if isinstance(x, Tensor) else x
