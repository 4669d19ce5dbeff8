"""The transformer inside the UNet: image tokens attend to each other, then to the text.

    x = x + self_attn(norm(x));   x = x + cross_attn(norm(x), context);   x = x + ff(norm(x))

(Rombach et al. 2022, sec. 3.3 and app. E.2.1.)
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.attention import Attention
from ldm.once import Once
from ldm.unet.config import UNetConfig


class Transformer(nn.Module):
    """`depth` transformer blocks over the pixels of x [b c h w] with context [b m c'], and a skip.

    crossing: whether self-attention attends to the context as well.
    """

    def __init__(self, config: UNetConfig, dim: int, depth: int, crossing: bool = False):
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        heads, context_dim = config.heads_at(dim), config.context_dim or dim
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, context_dim, crossing) for _ in range(depth))
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | Once | None) -> Tensor:
        h = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.blocks:
            h = block(h, context)
        return x + rearrange(self.proj_out(h), "b (h w) c -> b c h w", h=x.shape[2])


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to context [b m c'], feed-forward; each normed before. x [b n c]."""

    def __init__(self, dim: int, heads: int, context_dim: int, crossing: bool = False):
        super().__init__()
        self.crossing = crossing
        self.norm_self, self.norm_cross, self.norm_ff = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attn = Attention(dim, heads, context_dim if crossing else None)
        self.cross_attn = Attention(dim, heads, context_dim)
        self.ff = GEGLU(dim)

    def forward(self, x: Tensor, context: Tensor | Once | None) -> Tensor:
        x = x + self.self_attn(self.norm_self(x), context if self.crossing else None)
        x = x + self.cross_attn(self.norm_cross(x), context)
        return x + self.ff(self.norm_ff(x))


class PlainAttention(nn.Module):
    """Self-attention of all pixels of x [b c h w], and a skip: a UNet without text (Ho et al. 2020)."""

    def __init__(self, config: UNetConfig, dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, dim, eps=1e-5)
        self.attn = Attention(dim, config.heads_at(dim), bias=True)

    def forward(self, x: Tensor, context: Tensor | Once | None = None) -> Tensor:
        h = self.attn(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        return x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])


class GEGLU(nn.Module):
    """down(h * gelu(gate)) with h, gate = up(x): a gated feed-forward (Shazeer 2020, eq. 6). x [b n c]."""

    def __init__(self, dim: int):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 8 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.up(x).chunk(2, dim=-1)
        return self.down(h * F.gelu(gate))
