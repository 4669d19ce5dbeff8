"""The UNet's step as a CUDA graph.

What changes from step to step is copied to places that the graph reads: the latent; what the layers make of
the noise level; and, where the text is another, what they make of that.
"""

from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor

from ldm.once import Once, plain
from ldm_kernels.graphs import Graphs, Record


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


class Step:
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


class Captured(Graphs):
    """run(x, t, context, vector, label) of a packed UNet, by graphs where t and context are `Once`."""

    graph, what = Step, "steps with a latent of"

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
        heard = None if context is None else plain(context).shape
        return self.computed(x, t, context, key=(plain(t).shape, heard))
