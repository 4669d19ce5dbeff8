"""The text encoder of the first latent diffusion model, a BERT without a mask (Rombach et al. 2022)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.attention import Attention
from ldm.clip.config import BERTConfig
from ldm.clip.embedding import TokenEmbedding


class BERT(nn.Module):
    """ids [b n], n ≤ config.length -> states [b n width]. Every token, padding too, sees every other."""

    def __init__(self, config: BERTConfig = BERTConfig()):
        super().__init__()
        self.config = config
        self.tokens = TokenEmbedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.length, config.width)
        self.blocks = nn.ModuleList(BERTBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class BERTBlock(nn.Module):
    """Self-attention, then a feed-forward layer, each normed before. x [b n width]."""

    def __init__(self, config: BERTConfig):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attn = Attention(config.width, config.heads, inner=config.heads * config.head_dim)
        self.fc1 = nn.Linear(config.width, 4 * config.width)
        self.fc2 = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
