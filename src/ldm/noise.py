"""Where all randomness of sampling comes from: one CPU generator per image.

An image's noise depends on its own seed alone, so it is the same alone, in a batch, and on every device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Noise:
    """`noise()` -> fresh unit noise [b c h w], float32; row i comes from the generator of seeds[i].

    seeds  one int per image
    shape  (c, h, w) of one image's latent; a call may ask for another
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu"):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def __call__(self, shape: tuple[int, int, int] | None = None) -> Tensor:
        # dtype and device are said, so that torch's defaults do not matter
        rows = [
            torch.randn(shape or self.shape, generator=g, dtype=torch.float32, device="cpu")
            for g in self.generators
        ]
        return torch.stack(rows).to(self.device)
