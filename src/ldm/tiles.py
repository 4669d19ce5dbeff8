"""Large pictures in squares that overlap, one by one, so that memory depends on the square alone.

    out = Σ w f(x) / Σ w        w rises from 0 to 1 over what another square overlaps

An autoencoder's attention and norms look at a whole picture, so what comes out is near what comes of all at
once, not equal to it.
"""

from collections.abc import Callable
from itertools import product
from math import ceil

import torch
from torch import Tensor

OVERLAP = 0.25  # of a square's side


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, grain: tuple[int, int]) -> Tensor:
    """function(x [b c h w]), computed in squares.

    tile   side of a square, in units
    grain  how many pixels of x a unit is, and how many of the result
    """
    fine, wide = grain
    *_, h, w = x.shape
    rows, columns = spans(h // fine, tile), spans(w // fine, tile)
    if len(rows) == len(columns) == 1:
        return function(x)
    parts, windows = [], []
    for row, column in product(rows, columns):
        (top, bottom), (left, right) = row, column
        parts.append(function(x[..., top * fine : bottom * fine, left * fine : right * fine]))
        sides = (ramp(*row, rows, wide, x.device), ramp(*column, columns, wide, x.device))
        windows.append(torch.outer(*sides).to(x.dtype))
    total = x.new_zeros(*parts[0].shape[:2], h // fine * wide, w // fine * wide)
    weight = torch.zeros_like(total[0, 0])
    for ((top, bottom), (left, right)), part, window in zip(
        product(rows, columns), parts, windows, strict=True
    ):
        here = (..., slice(top * wide, bottom * wide), slice(left * wide, right * wide))
        total[here] += part * window
        weight[here] += window
    return total / weight


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Where squares begin and end along a side: as few as overlap by a quarter, evenly spread."""
    if length <= tile:
        return [(0, length)]
    count = ceil((length - OVERLAP * tile) / ((1 - OVERLAP) * tile))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def ramp(start: int, end: int, spans: list[tuple[int, int]], wide: int, device: torch.device) -> Tensor:
    """The weight along a side of a square: it rises over what the one before overlaps, and falls likewise."""
    i = spans.index((start, end))
    rise = spans[i - 1][1] - start if i else 0
    fall = end - spans[i + 1][0] if i + 1 < len(spans) else 0
    at = (torch.arange((end - start) * wide, device=device) + 0.5) / wide
    up = (at / rise).clamp(max=1) if rise else torch.ones_like(at)
    return up * ((end - start - at) / fall).clamp(max=1) if fall else up
