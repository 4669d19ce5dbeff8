"""Where all randomness of sampling comes from: one CPU generator per image.

An image's noise depends on its own seed alone, so it is the same alone, in a batch, and on every device.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from ldm.circle import slerp_rows

DEPTH = 14  # halvings; steps shorter than a 2^14th of all share their draws
MASK = 2**64 - 1


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
        return sent(torch.stack(rows), self.device)


class Draws(Protocol):
    """What Noise and Philox are: `noise()` -> fresh unit noise [b c h w]."""

    def __call__(self, shape: tuple[int, int, int] | None = None) -> Tensor: ...


def way(a: Draws, b: Draws, shares: Sequence[float]) -> Draws:
    """Draws of which row i is shares[i] of the way from a's to b's, on the great circle: unit noise again."""

    def draw(shape: tuple[int, int, int] | None = None) -> Tensor:
        return slerp_rows(a(shape), b(shape), shares)

    return draw


class Brownian:
    """Brownian motion W along lambda, so that the noise of a stochastic solver does not depend on its steps.

    W(b) - W(a) has variance b - a. Halving an interval again and again, W in the middle is the mean of its
    ends and a draw of variance (b - a) / 4 (Lévy). Each draw has a seed of its own, made of the image's and
    of its place, so W is the same at every lambda whatever was asked before, and nothing needs to be kept.

    seeds  one int per image; shape (c, h, w) of one
    start  lambda where W = 0; end, beyond which it stays what it is
    """

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, int, int], start: float, end: float,
        device: torch.device | str = "cpu",
    ):  # fmt: skip
        self.seeds, self.shape, self.start, self.end, self.device = seeds, shape, start, end, device
        self.at = lru_cache(maxsize=3)(self._at)  # a step begins where another has ended

    def between(self, a: float, b: float) -> Tensor:
        """(W(b) - W(a)) / sqrt(b - a): unit noise [b c h w], float32."""
        a, b = (min(max(lam, self.start), self.end) for lam in (a, b))
        return sent((self.at(b) - self.at(a)) / sqrt(b - a), self.device)

    def _at(self, lam: float) -> Tensor:
        """W(lambda), [b c h w]."""
        return torch.stack([self.row(seed, lam) for seed in self.seeds])

    def row(self, seed: int, lam: float) -> Tensor:
        """W(lambda) of one image."""
        a, b, place = self.start, self.end, 1
        high = sqrt(b - a) * self.draw(seed, 0)
        low = torch.zeros_like(high)
        for _ in range(DEPTH):
            if lam in (a, b):
                break
            mid = (a + b) / 2
            at_mid = (low + high) / 2 + sqrt(b - a) / 2 * self.draw(seed, place)
            if lam < mid:
                b, high, place = mid, at_mid, 2 * place
            else:
                a, low, place = mid, at_mid, 2 * place + 1
        return torch.lerp(low, high, (lam - a) / (b - a))

    def draw(self, seed: int, place: int) -> Tensor:
        """The unit noise of a node of the tree."""
        generator = torch.Generator().manual_seed(mixed(mixed(seed) ^ place))
        return torch.randn(self.shape, generator=generator, dtype=torch.float32, device="cpu")


class BrownianWay:
    """Brownian motion of which row i is shares[i] of the way from a's to b's."""

    def __init__(self, a: Brownian, b: Brownian, shares: Sequence[float]):
        self.a, self.b, self.shares = a, b, shares

    def between(self, start: float, end: float) -> Tensor:
        """As of `Brownian`. [b c h w]"""
        return slerp_rows(self.a.between(start, end), self.b.between(start, end), self.shares)


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """x of the CPU on a device. The host does not wait: CUDA fetches by itself what is in pinned memory."""
    cuda = torch.device(device).type == "cuda"
    return (x.pin_memory() if cuda else x).to(device, non_blocking=cuda)


def mixed(number: int) -> int:
    """64 bits that depend on every bit of a number (Steele et al. 2014, SplitMix64)."""
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)
