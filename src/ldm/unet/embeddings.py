"""How the network is told the noise level.

emb(t) = [cos(t w_0), …, cos(t w_{d/2-1}), sin(t w_0), …],      w_i = 10000^(-2i/d)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosines first (Vaswani et al. 2017, sec. 3.5). t [b] -> [b dim], float32."""
    half = dim // 2
    # float32, as the networks were trained with it: exact frequencies would move outputs by 3e-6
    freqs = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """The noise level t [b], in training steps, as a vector [b time_dim]: sinusoid, linear, SiLU, linear."""

    def __init__(self, dim: int, time_dim: int):
        super().__init__()
        self.dim = dim
        self.fc1, self.fc2 = nn.Linear(dim, time_dim), nn.Linear(time_dim, time_dim)

    def forward(self, t: Tensor) -> Tensor:
        wave = sinusoid(t, self.dim).to(self.fc2.bias.dtype)
        return self.fc2(F.silu(self.fc1(wave)))


class VectorEmbedding(nn.Module):
    """What SDXL says of the whole picture, [b dim], as a vector [b time_dim]: linear, SiLU, linear."""

    def __init__(self, dim: int, time_dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, time_dim), nn.Linear(time_dim, time_dim)

    def forward(self, vector: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(vector)))
