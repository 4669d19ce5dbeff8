"""Large pictures in squares that overlap, one by one, so that a network's memory is that of a square.

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
    total = weight = x.new_zeros(())
    for i, j in product(range(len(rows)), range(len(columns))):
        (top, bottom), (left, right) = rows[i], columns[j]
        part = function(x[..., top * fine : bottom * fine, left * fine : right * fine])
        if not total.ndim:
            total = part.new_zeros(*part.shape[:2], h // fine * wide, w // fine * wide, dtype=torch.float32)
            weight = torch.zeros_like(total[0, 0])
        window = torch.outer(ramp(rows, i, wide, part.device), ramp(columns, j, wide, part.device))
        here = (..., slice(top * wide, bottom * wide), slice(left * wide, right * wide))
        total[here] += part * window
        weight[here] += window
    return (total / weight).to(x.dtype)


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Where squares begin and end along a side: as few as can overlap by a quarter, evenly spread."""
    if length <= tile:
        return [(0, length)]
    count = ceil((length - OVERLAP * tile) / ((1 - OVERLAP) * tile))
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def ramp(places: list[tuple[int, int]], i: int, wide: int, device: torch.device) -> Tensor:
    """The weight along a side of square i: it rises over what the one before overlaps, and falls likewise."""
    start, end = places[i]
    rise = places[i - 1][1] - start if i else 0
    fall = end - places[i + 1][0] if i + 1 < len(places) else 0
    at = (torch.arange((end - start) * wide, dtype=torch.float32, device=device) + 0.5) / wide
    up = (at / rise).clamp(max=1) if rise else torch.ones_like(at)
    return up * ((end - start - at) / fall).clamp(max=1) if fall else up
