"""The UNet's step as a CUDA graph: what were a thousand launches is one.

A graph does again what was done while it was recorded, with the same memory. So what changes from step to
step is copied to places that the graph reads: the latent; what the layers make of the noise level; and, where
the text is another, what they make of that. Of sizes that are new the first step runs as ever, which is when
kernels are compiled and chosen, and is recorded afterwards.
"""

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

KEPT = 4  # graphs of a network, each of which has the memory of its buffers
Replay = Callable[[], Tensor]
Record = Callable[[Callable[[], Tensor]], Replay]
_recording = Lock()  # one at a time, of whatever network


class Recorder:
    """record(function) -> replay, which does a function's work again and gives the tensor that it is in.

    The function is run twice. The graphs of one recorder work in the same memory, and must take turns.
    """

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        with _recording:
            aside, now = torch.cuda.Stream(), torch.cuda.current_stream()
            aside.wait_stream(now)
            with torch.cuda.stream(aside):  # what libraries set up once must not be in the graph
                function()
            now.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                out = function()
            self.pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


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
        heard = None if self.context is None else self.context.once
        self.replay = record(lambda: run(self.x, self.t.once, heard))

    def __call__(self, x: Tensor, t: Once, context: Once | None) -> Tensor:
        self.x.copy_(x)
        self.t.take(t)
        if self.context is not None and context is not None:
            self.context.take(context)
        return self.replay().clone()


class Captured:
    """run(x, t, context, vector, label) of a packed UNet, by graphs where that can be.

    That is where nothing looks into the network (hooks, gradients, a backend of the caller's own), and where
    t and context are `Once`. record: makes replays. kept: so many, those of the sizes last in use.
    """

    def __init__(
        self, unet: nn.Module, run: Callable[..., Tensor], record: Record | None = None, kept: int = KEPT
    ):
        self.run, self.record, self.kept = run, record or Recorder(), kept
        inner = list(unet.modules())[1:]
        self.hooks = [
            hooks for module in inner for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self.hooks += [of_all._global_forward_hooks, of_all._global_forward_pre_hooks]
        self.graphs: OrderedDict[tuple[Any, ...], Graph] = OrderedDict()
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
        heard = None if context is None else plain(context)
        key = (
            x.device,
            x.dtype,
            x.shape,
            plain(t).shape,
            None if heard is None else heard.shape,
            in_force(attend),
        )
        with self.turn.of(x), torch.inference_mode(False), torch.no_grad():
            graph = self.graphs.get(key)
            if graph is None:
                out = self.first(x, t, context)
                self.graphs[key] = Graph(self.run, self.record, x, t, context)
                if len(self.graphs) > self.kept:  # not before: the last of a pool would take it along
                    self.graphs.popitem(last=False)
                return out
            self.graphs.move_to_end(key)
            return graph(x, t, context)

    def seen(self, x: Tensor) -> bool:
        """Whether somebody looks into the network, to whom a graph would show nothing, or records it."""
        looked = torch.is_grad_enabled() or any(self.hooks) or in_force(attend) not in (attend, sdpa)
        return looked or (x.is_cuda and torch.cuda.is_current_stream_capturing())

    def first(self, x: Tensor, t: Once, context: Once | None) -> Tensor:
        """As ever, while cuDNN tries which of its convolutions are the fastest; it remembers them."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            return self.run(x, t, context)
        finally:
            torch.backends.cudnn.benchmark = before


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
