"""What layers make of an input that stays the same while others change, made once.

Keys and values of a text are the same at every step; of a packed network, also what the residual blocks hear
of the noise levels is made before the first, of all of them in one product, which rounds otherwise than a
product of each. A network takes such an input as a tensor, or as `Once`, which remembers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Once:
    """Rows of a tensor, and what each layer made of the whole of it the first time it was asked."""

    whole: Tensor
    rows: slice = field(default_factory=lambda: slice(None))
    made: dict[Layer, Tensor] = field(default_factory=dict)

    def at(self, rows: slice) -> "Once":
        """Other rows of the same."""
        return replace(self, rows=rows)

    def by(self, layer: Layer) -> Tensor:
        """What a layer that treats each row by itself makes of these."""
        if layer not in self.made:
            self.made[layer] = layer(self.whole)
        return self.made[layer][self.rows]


def by(layer: Layer, x: Tensor | Once) -> Tensor:
    """layer(x)."""
    return x.by(layer) if isinstance(x, Once) else layer(x)


def plain(x: Tensor | Once) -> Tensor:
    """x itself."""
    return x.whole[x.rows] if isinstance(x, Once) else x
