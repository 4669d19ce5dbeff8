"""Vector quantisation: a latent is made of the vectors of a codebook (van den Oord et al. 2017, eq. 1).

    quantised(z) = e_k,   k = argmin_j |z - e_j|²

Latent diffusion works on z before it is quantised, and quantises where it decodes (Rombach et al. 2022,
app. G).
"""

import torch
from einops import rearrange
from torch import Tensor, nn


class Codebook(nn.Module):
    """z [b c h w] -> the nearest codes, [b c h w]."""

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.codes = nn.Embedding(codes, dim)

    def forward(self, z: Tensor) -> Tensor:
        flat = rearrange(z, "b c h w -> (b h w) c")
        codes = self.codes(torch.cat([self.nearest(part) for part in flat.split(4096)]))
        return rearrange(codes, "(b h w) c -> b c h w", b=len(z), h=z.shape[2])

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the code nearest to each row of z [n c]: |z - e|² without |z|², the same for all codes."""
        codes = self.codes.weight
        return (codes.square().sum(1) - 2 * z @ codes.T).argmin(dim=1)
