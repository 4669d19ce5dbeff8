"""What a text encoder says as a CUDA graph: on a GPU its launches take longer than its work."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ldm.attention import in_force
from ldm.clip import TextEncoder
from ldm.methods import Method
from ldm_kernels.graphs import Graphs, Record

Said = tuple[Tensor, Tensor | None]  # hidden states [b n c], pooled text [b c']


class Reading:
    """run(ids, skip), recorded."""

    def __init__(self, run: Callable[..., Said], record: Record, ids: Tensor, skip: int):
        self.ids = ids.clone()
        self.replay = record(lambda: run(self.ids, skip))

    def __call__(self, ids: Tensor, skip: int) -> Said:
        self.ids.copy_(ids)
        hidden, pooled = self.replay()
        return hidden.clone(), None if pooled is None else pooled.clone()


class Reader(Graphs):
    """`TextEncoder.pooled`, by graphs where no tokens were added, which may come and go.

    Unlike what is packed a text encoder may be moved, so a graph is for weights that lie where they lay.
    """

    graph, what = Reading, "texts of ids"

    def __init__(self, encoder: TextEncoder, **options: Any):
        super().__init__(encoder, Method(TextEncoder.pooled, encoder), **options)
        self.added = encoder.tokens.added
        self.weights = [module._parameters for module in encoder.modules() if module._parameters]

    def __call__(self, ids: Tensor, skip: int = 0) -> Said:
        if self.added or self.seen(ids):
            return self.run(ids, skip)
        lie = tuple(w.data_ptr() for own in self.weights for w in own.values() if w is not None)
        return self.computed(ids, skip, key=(skip, in_force(), lie))
