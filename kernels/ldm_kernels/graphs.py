"""The UNet's step as a CUDA graph: what were a thousand launches is one.

A graph does again what was done while it was recorded, with the same memory. So what changes from step to
step is copied to places that the graph reads: the latent; what the layers make of the noise level; and, where
the text is another, what they make of that. Of sizes that are new the first step runs as ever, which is when
kernels are compiled and chosen; so does the second, which is recorded afterwards.
"""

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all

from ldm.attention import in_force, sdpa
from ldm.once import Once, plain
from ldm_kernels.backend import attend
from ldm_kernels.choice import alone

KEPT = 8  # graphs of a network, each of which has the memory of its buffers
MET = 64  # sizes that are remembered as met
Replay = Callable[[], Tensor]
Record = Callable[[Callable[[], Tensor]], Replay]
log = logging.getLogger("ldm")


class Recorder:
    """record(function) -> replay, which does a function's work again and gives the tensor that it is in.

    The function is run twice. The graphs of one recorder work in the same memory, and must take turns.
    """

    def __init__(self) -> None:
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.pools: dict[torch.device, Any] = {}

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
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

        def replay() -> Tensor:
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


class Held:
    """What layers made of an input, at places that stay."""

    def __init__(self, source: Once):
        self.made = {layer: source.by(layer).clone() for layer in source.made}
        self.once = Once(source.whole.new_empty(0), made=self.made)  # any other layer fails on nothing
        self.source = ref(source)

    def take(self, source: Once) -> None:
        """What they make of another input."""
        if self.source() is not source:
            torch._foreach_copy_(list(self.made.values()), [source.by(layer) for layer in self.made])
            self.source = ref(source)


class Graph:
    """run(x, t, context), recorded."""

    def __init__(self, run: Callable[..., Tensor], record: Record, x: Tensor, t: Once, context: Once | None):
        self.x, self.t = x.clone(), Held(t)
        self.context = None if context is None else Held(context)
        given = (self.x, self.t.once, None if self.context is None else self.context.once)
        self.replay = record(lambda: run(*given))

    def __call__(self, x: Tensor, t: Once, context: Once | None) -> Tensor:
        self.x.copy_(x)
        self.t.take(t)
        if self.context is not None and context is not None:
            self.context.take(context)
        return self.replay().clone()


class Captured:
    """run(x, t, context, vector, label) of a packed UNet, by graphs where that can be.

    That is where nothing looks into the network (hooks, gradients, a backend of the caller's own), and where
    t and context are `Once`. A graph that cannot be recorded, as memory is too short, is given up, and so are
    all others, which are recorded anew when they are asked for.

    recorder  makes what makes replays
    kept      graphs, those of the sizes last in use
    """

    def __init__(
        self,
        unet: nn.Module,
        run: Callable[..., Tensor],
        recorder: Callable[[], Record] = Recorder,
        kept: int = KEPT,
    ):
        self.run, self.recorder, self.record, self.kept = run, recorder, recorder(), kept
        inner = list(unet.modules())[1:]
        self.hooks = [
            hooks for module in inner for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self.hooks += [of_all._global_forward_hooks, of_all._global_forward_pre_hooks]
        self.graphs: OrderedDict[tuple[Any, ...], Graph] = OrderedDict()
        self.met: OrderedDict[tuple[Any, ...], bool] = OrderedDict()  # and whether a graph may be recorded
        self.turn = Turn()

    def __call__(
        self,
        x: Tensor,
        t: Tensor | Once,
        context: Tensor | Once | None = None,
        vector: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(t, Once) or isinstance(context, Tensor) or self.seen(x):
            return self.run(x, t, context, vector, label)
        key = circumstances(x, t, context)
        with self.turn.of(x), torch.inference_mode(False), torch.no_grad():
            if key in self.graphs:
                self.graphs.move_to_end(key)
                return self.graphs[key](x, t, context)
            out = self.as_ever(x, t, context)
            if self.met.get(key, False):
                self.met[key] = self.keep(key, x, t, context)
            else:
                self.met.setdefault(key, True)
            self.met.move_to_end(key)
            while len(self.met) > MET:
                self.met.popitem(last=False)
            return out

    def keep(self, key: tuple[Any, ...], x: Tensor, t: Once, context: Once | None) -> bool:
        """Record a graph; False if that cannot be, which the logger "ldm" is told."""
        try:
            self.graphs[key] = Graph(self.run, self.record, x, t, context)
        except RuntimeError as error:
            self.graphs.clear()
            self.record = self.recorder()  # one that was interrupted is of no use
            short = "there is too little memory for it; a smaller batch or picture would have one"
            log.warning(
                "steps with a latent of %s have no CUDA graph, and are slower: %s",
                list(x.shape), short if too_short(error) else error,
            )  # fmt: skip
            return False
        if len(self.graphs) > self.kept:  # not before: the last of a pool would take it along
            self.graphs.popitem(last=False)
        return True

    def seen(self, x: Tensor) -> bool:
        """Whether somebody looks into the network, to whom a graph would show nothing, or records it."""
        looked = torch.is_grad_enabled() or any(self.hooks) or in_force(attend) not in (attend, sdpa)
        return looked or (x.is_cuda and torch.cuda.is_current_stream_capturing())

    def as_ever(self, x: Tensor, t: Once, context: Once | None) -> Tensor:
        """Without a graph; cuDNN tries which of its convolutions are the fastest, and remembers them."""
        with alone:  # what cuDNN does is a setting of the whole process
            before = torch.backends.cudnn.benchmark
            torch.backends.cudnn.benchmark = True
            try:
                return self.run(x, t, context)
            finally:
                torch.backends.cudnn.benchmark = before


def circumstances(x: Tensor, t: Once, context: Once | None) -> tuple[Any, ...]:
    """All that a graph is recorded for, so that where any of it is another the graph is."""
    heard = None if context is None else plain(context).shape
    cast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
    return x.device, x.dtype, x.shape, plain(t).shape, heard, in_force(attend), *cast


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
