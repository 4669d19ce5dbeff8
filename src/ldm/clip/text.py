"""The CLIP text encoder: token ids to the states that the UNet attends to (Radford et al. 2021, sec. 2.4)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.attention import Attention
from ldm.clip.config import CLIPConfig
from ldm.clip.embedding import TokenEmbedding


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation of gelu that OpenAI trained with (Hendrycks & Gimpel 2016)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class TextEncoder(nn.Module):
    """ids [b n], n ≤ config.length -> hidden states [b n width], of the layer and norm that the family uses.

    skip: how many more of the last layers are left out ("clip skip"); the pooled text is that of all layers.
    Padding is attended to like any token: the models were trained without a mask, so the pad id matters.
    """

    def __init__(self, config: CLIPConfig = CLIPConfig()):
        super().__init__()
        self.config = config
        self.tokens = TokenEmbedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.pool = nn.Linear(config.width, config.projection, bias=False) if config.projection else None

    def forward(self, ids: Tensor, skip: int = 0) -> Tensor:
        return self.hidden(ids, skip)[0]

    def pooled(self, ids: Tensor, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """The hidden states, and the pooled text [b projection]: the end token's last state, projected."""
        hidden, x = self.hidden(ids, skip)
        if self.pool is None:
            return hidden, None
        for block in self.blocks[self.heard(skip) :]:
            x = block(x)
        # of the table's ids the end token has the highest
        ends = ids.masked_fill(ids >= self.config.vocab, 0).argmax(dim=-1)
        return hidden, self.pool(self.norm(x)[torch.arange(len(ids), device=ids.device), ends])

    def hidden(self, ids: Tensor, skip: int = 0) -> tuple[Tensor, Tensor]:
        """The hidden states that the UNet hears, and what the layers not yet run would go on from."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks[: self.heard(skip)]:
            x = block(x)
        return self.norm(x) if self.config.final_norm else x, x

    def heard(self, skip: int) -> int:
        """How many layers the UNet hears the result of."""
        return len(self.blocks) - self.config.skip - skip


class Block(nn.Module):
    """Causal self-attention, then a feed-forward layer, each normed before. x [b n width]."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attn = Attention(config.width, config.heads, bias=True, causal=True)
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))
