"""What networks compute as CUDA graphs: what were a thousand launches is one.

A graph does again what was done while it was recorded, with the same memory. So what changes from call to
call is copied to places that the graph reads (`steps`, `texts`). Of sizes that are new the first call runs as
ever, which is when kernels are compiled and chosen; so does the second, which is recorded afterwards.
"""

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all
from triton.runtime.errors import TritonError

from ldm.attention import in_force, sdpa
from ldm.methods import Method
from ldm_kernels.backend import attend
from ldm_kernels.choice import alone

KEPT = 8  # graphs of a network, each of which has the memory of its buffers
MET = 64  # sizes that are remembered as met
Replay = Callable[[], Any]
Record = Callable[[Callable[[], Any]], Replay]
log = logging.getLogger("ldm")


class Recorder:
    """record(function) -> replay, which does a function's work again and gives the tensors that it is in.

    The function is run twice. The graphs of one recorder work in the same memory, and must take turns.
    """

    def __init__(self) -> None:
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.pools: dict[torch.device, Any] = {}

    def __call__(self, function: Callable[[], Any]) -> Replay:
        now = torch.cuda.current_stream()
        with alone, torch.cuda.stream(now):  # which is again the current one if recording fails
            if now.device not in self.streams:
                self.streams[now.device] = torch.cuda.Stream()
            aside = self.streams[now.device]
            aside.wait_stream(now)
            with torch.cuda.stream(aside):  # what libraries set up once must not be in the graph
                function()
            now.wait_stream(aside)
            graph, pool = torch.cuda.CUDAGraph(), self.pools.get(now.device)
            with by_itself(), torch.cuda.graph(graph, pool, aside, capture_error_mode="thread_local"):
                out = function()
            self.pools[now.device] = graph.pool()

        def replay() -> Any:
            graph.replay()
            return out

        return replay


@contextmanager
def by_itself() -> Iterator[None]:
    """While a graph is recorded: nothing else is freed, and cuBLAS has no memory but the graph's own.

    cuBLAS keeps what it works in by its handle and stream: what one graph's memory holds another would use.
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
        if collecting:
            gc.enable()


class Graphs:
    """run(*given) of a network, by graphs where that can be.

    That is where nothing looks into the network (hooks, gradients, a backend of the caller's own). A graph
    that cannot be recorded, as memory is too short, is given up, and so are all others, which are recorded
    anew when they are asked for.

    graph     (run, record, *given) -> what computes it of others of the same sizes
    what      what it computes of the first that is given, for the logger
    recorder  makes what makes replays
    kept      graphs, those of the sizes last in use
    """

    graph: Callable[..., Callable[..., Any]]
    what: str

    def __init__(
        self,
        network: nn.Module,
        run: Method,
        recorder: Callable[[], Record] = Recorder,
        kept: int = KEPT,
    ):
        self.run, self.recorder, self.record, self.kept = run, recorder, recorder(), kept
        inner = list(network.modules())[1:]
        self.hooks = [
            hooks for module in inner for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self.hooks += [of_all._global_forward_hooks, of_all._global_forward_pre_hooks]
        self.graphs: OrderedDict[tuple[Any, ...], Callable[..., Any]] = OrderedDict()
        self.met: OrderedDict[tuple[Any, ...], bool] = OrderedDict()  # and whether a graph may be recorded
        self.turn = Turn()

    def __reduce__(self) -> tuple[Any, ...]:
        return self.run.__reduce__()  # a copy of the network has no graphs, and these are not its

    def computed(self, x: Tensor, *more: Any, key: tuple[Any, ...] = ()) -> Any:
        """run(x, *more); key: what of `more` a graph is recorded for."""
        key = (*circumstances(x), *key)
        with torch.cuda.device_of(x), self.turn.of(x), torch.inference_mode(False), torch.no_grad():
            if key in self.graphs:
                self.graphs.move_to_end(key)
                return self.graphs[key](x, *more)
            out = self.as_ever(x, *more)
            if self.met.get(key, False):
                self.met[key] = self.keep(key, x, *more)
            else:
                self.met.setdefault(key, True)
            self.met.move_to_end(key)
            while len(self.met) > MET:
                self.met.popitem(last=False)
            return out

    def keep(self, key: tuple[Any, ...], x: Tensor, *more: Any) -> bool:
        """Record a graph; False if that cannot be, which the logger "ldm" is told."""
        try:
            self.graphs[key] = self.graph(self.run, self.record, x, *more)
        except (RuntimeError, TritonError) as error:
            self.graphs.clear()
            self.record = self.recorder()  # one that was interrupted is of no use
            short = "there is too little memory for it; a smaller batch or picture would have one"
            log.warning(
                "%s %s have no CUDA graph, and are slower: %s",
                self.what, list(x.shape), short if too_short(error) else error,
            )  # fmt: skip
            return False
        if len(self.graphs) > self.kept:  # not before: the last of a pool would take it along
            self.graphs.popitem(last=False)
        return True

    def seen(self, x: Tensor) -> bool:
        """Whether somebody looks into the network, to whom a graph would show nothing, or records it.

        Nor are there graphs where x is not on a GPU, if CUDA is to record them.
        """
        looked = torch.is_grad_enabled() or any(self.hooks) or in_force(attend) not in (attend, sdpa)
        if not x.is_cuda:
            return looked or self.recorder is Recorder
        return looked or torch.cuda.is_current_stream_capturing()

    def as_ever(self, *given: Any) -> Any:
        """Without a graph; cuDNN tries which of its convolutions are the fastest, and remembers them."""
        with alone:  # what cuDNN does is a setting of the whole process
            before = torch.backends.cudnn.benchmark
            torch.backends.cudnn.benchmark = True
            try:
                return self.run(*given)
            finally:
                torch.backends.cudnn.benchmark = before


def circumstances(x: Tensor) -> tuple[Any, ...]:
    """What a graph is recorded for; where any of it is another, so is the graph."""
    cast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
    return x.device, x.dtype, x.shape, in_force(attend), *cast


def too_short(error: BaseException | None) -> bool:
    """Whether memory was, at last or before: CUDA ends an interrupted recording with an error of its own."""
    if error is None or isinstance(error, torch.OutOfMemoryError):
        return error is not None
    return "out of memory" in str(error) or too_short(error.__context__)


class Turn:
    """One after another, threads on the host and streams on the device; the host waits for no device."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.done: torch.cuda.Event | None = None

    @contextmanager
    def of(self, x: Tensor) -> Iterator[None]:
        """The turn of what is computed of x."""
        with self.lock:
            stream = torch.cuda.current_stream() if x.is_cuda else None
            if stream is not None and self.done is not None:
                stream.wait_event(self.done)
            try:
                yield
            finally:
                if stream is not None:
                    self.done = stream.record_event()
