"""3×3 convolutions on a CPU, of images whose channels lie last, some rows at a time.

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A          16 products a channel for 2×2 pixels, instead of 36

where g is the kernel and d a tile of 2×2 pixels with a border (Winograd 1980; Lavin & Gray 2016, sec. 4.1).
Summed over channels, ⊙ is 16 products of matrices. Where an image is doubled first, each of its pixels is a
tile and has 9: along each axis d1 and d2 are the same, and one product in four is of zeros.
Where there are few pixels, g takes longer to be read than to be used: it is used as it lies in the file, and
the pixels are unfolded.

Rows are made when they are needed, by a function of the images and rows that are asked for; so norms and
gates before a convolution, and sums after it, cost no memory beside the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product as pairs
from threading import Lock
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import InputError

Rows = Callable[[range, range], Tensor]  # of images and rows -> their pixels [b r w c]

TILES = 512  # at once, so that they stay in the cache
FEW = 64  # rows of a product
LEAST_PIXELS, DEEP_PIXELS = 8 * 8, 16 * 16  # of an image that is computed by tiles, by many weights
MAKING = Lock()  # kernels of tiles, by one thread at a time


def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """x Wᵀ + b, [… c] -> [… c'], by oneDNN, which needs no other order of W than the file's.

    Raises InputError for x of another dtype or width.
    """
    if x.dtype != weight.dtype or x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"what is packed was given {x.dtype} of {x.shape[-1]} numbers, and takes {weight.dtype} of "
            f"{weight.shape[1]}; convert it, and leave autocast out"
        )
    multiply = torch.ops.mkldnn._linear_pointwise
    if 1 < x.numel() // x.shape[-1] <= FEW:  # W xᵀ: of two factors the second is brought into another order
        across = multiply(weight, x.reshape(-1, x.shape[-1]), None, "none", [], "")
        y: Tensor = rearrange(across, "c n -> n c").contiguous().unflatten(0, x.shape[:-1])
        return y if bias is None else y.add_(bias)
    y = multiply(x, weight, bias, "none", [], "")
    return y


def spread(d: Sequence[Tensor]) -> Iterator[Tensor]:
    """Bᵀ d."""
    d0, d1, d2, d3 = d
    yield from (d0 - d2, d1 + d2, d2 - d1, d1 - d3)


def gather(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Aᵀ m, for which m is used up. m1 is in both: what is added to it is added to all pixels."""
    m0, m1, m2, m3 = m
    torch.add(m0.add_(m1), m2, out=out[0])
    torch.sub(m1.sub_(m2), m3, out=out[1])


def spread_doubled(d: Sequence[Tensor]) -> Iterator[Tensor]:
    """Bᵀ d of a pixel and its neighbours; the factor 2 of d1 + d2 is in the kernel."""
    d0, d1, d2 = d
    yield from (d0 - d1, d1, d1 - d2)


def gather_doubled(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Aᵀ m."""
    m0, m1, m2 = m
    torch.add(m0, m1, out=out[0])
    torch.sub(m1, m2, out=out[1])


class Tile(NamedTuple):
    """How 2 pixels along an axis are computed."""

    step: int  # pixels of the image from tile to tile
    kernel: Tensor  # G
    spread: Callable[[Sequence[Tensor]], Iterator[Tensor]] = spread
    gather: Callable[[Sequence[Tensor], Sequence[Tensor]], None] = gather


PLAIN = Tile(2, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]]))
DOUBLED = Tile(
    1, torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]), spread_doubled, gather_doubled
)


class Convolution:
    """A 3×3 convolution of stride 1 and padding 1 of an image, or of its double, by tiles or unfolded.

    lasting  whether the module's weight is kept beside the tiles'
    """

    def __init__(self, lasting: bool, tile: Tile = PLAIN):
        self.lasting, self.tile, self.least = lasting, tile, LEAST_PIXELS
        self.tiled: Tensor | None = None

    def kernels(self, module: nn.Conv2d) -> Tensor:
        """G g Gᵀ [k k c' c], made at the first use. The weight is let go of where it is not to last."""
        with MAKING:
            if self.tiled is None:
                weight = module.weight.detach()
                self.tiled = transformed(weight, self.tile.kernel)
                if not self.lasting:  # of it stays what it was like
                    module.weight = nn.Parameter(weight.to("meta"), requires_grad=False)
            return self.tiled

    def __call__(
        self, module: nn.Conv2d, rows: Rows, size: tuple[int, ...], bias: Tensor, skip: Rows | None
    ) -> Tensor:
        """rows [b h w c] of a size (b, h, w) -> [b h w c'], or [b 2h 2w c'] of the double.

        bias [b or 1, c'] and skip, of the size of what is computed, are added.
        """
        b, h, w = size
        step, weight = self.tile.step, module.weight
        high, wide = 2 * h // step, 2 * w // step
        tiled = weight.is_meta or high * wide >= self.least
        weight = self.kernels(module) if tiled else weight
        out = bias.new_empty(b, high + high % 2, wide + wide % 2, module.out_channels)
        for images, lines in parts(b, out.shape[1] // 2, out.shape[2] // 2):
            own, first, last = slice(images.start, images.stop), step * lines.start, step * lines.stop
            seen = range(max(first - 1, 0), min(last + 1, h))
            x, above = rows(images, seen), seen.start - first + 1
            told, place = bias[own] if len(bias) > 1 else bias, out[own, 2 * lines.start : 2 * lines.stop]
            if tiled:
                by_tiles(self.tile, weight, columns(x, above, last - first + 2, step), told, place)
            else:
                x = F.pad(x, (0, 0, 1, 1 + w % step, above, last - first + 2 - above - len(seen)))
                x = x if step == 2 else doubled(x)[:, 1:-1, 1:-1]
                torch.add(unfolded(weight, x), told[:, None, None], out=place)
            if skip is not None:
                here = range(2 * lines.start, min(2 * lines.stop, high))
                place[:, : len(here), :wide] += skip(images, here)
        return out[:, :high, :wide].contiguous()  # which it is, but for odd sizes


def transformed(weight: Tensor, kernel: Tensor) -> Tensor:
    """G g Gᵀ of kernels [c' c 3 3] by G [k 3] -> [k k c' c]."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        both = torch.kron(kernel, kernel)
        parts = [both @ rearrange(part, "o c i j -> (i j) (o c)") for part in weight.split(64)]
        whole = torch.cat([part.unflatten(1, (-1, weight.shape[1])) for part in parts], dim=1)
        return whole.unflatten(0, (len(kernel), -1))


def doubled(x: Tensor) -> Tensor:
    """[b h w c] -> [b 2h 2w c]."""
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)


def unfolded(weight: Tensor, seen: Tensor, stride: int = 1) -> Tensor:
    """[b h+2 w+2 c] -> [b h w c'] as one product of matrices, with the weight in the file's order."""
    patches = seen.unfold(1, 3, stride).unfold(2, 3, stride)  # [b h w c 3 3]
    return linear(weight.flatten(1), None, rearrange(patches, "b h w c i j -> b h w (c i j)"))


def columns(x: Tensor, above: int, high: int, step: int) -> Tensor:
    """Every `step`-th column [step b high t' c] of x [b r w c] in zeros, of which `above` rows lie above."""
    b, r, w, c = x.shape
    out = x.new_empty(step, b, high, -(-w // step) + 2 // step, c)
    out[:, :, :above] = out[:, :, above + r :] = 0
    for first, part in enumerate(out[:, :, above : above + r]):
        own = x[:, :, (first - 1) % step :: step]
        at = int(first == 0)
        part[:, :, :at] = part[:, :, at + own.shape[2] :] = 0
        part[:, :, at : at + own.shape[2]] = own
    return out


def by_tiles(tile: Tile, weights: Tensor, x: Tensor, bias: Tensor, out: Tensor) -> None:
    """x [step b step·r+2 t' c], as of `columns`, into out [b 2r 2t c'] by weights [k k c' c].

    bias [b or 1, c']
    """
    b, r, t, k, step = len(out), out.shape[1] // 2, out.shape[2] // 2, len(weights), tile.step
    places, m = out.unflatten(2, (t, 2)).unflatten(1, (r, 2)), []
    told = {(1, 1): bias[0]} if len(bias) == 1 else {}
    for j, part in enumerate(tile.spread([x[n % step, :, :, n // step : n // step + t] for n in range(k)])):
        own = [part[:, n : n + step * (r - 1) + 1 : step] for n in range(k)]
        column = [
            linear(weights[i, j], told.get((i, j)), d.reshape(-1, x.shape[-1]).contiguous())
            for i, d in enumerate(tile.spread(own))
        ]
        tile.gather(column, column[:2])
        m.append(column[:2])
    for i, row in enumerate(zip(*m, strict=True)):
        tile.gather([y.view(b, r, t, -1) for y in row], [places[:, :, i, :, j] for j in range(2)])
    if not told:
        out += bias[:, None, None]


def parts(images: int, high: int, wide: int) -> Iterator[tuple[range, range]]:
    """Images and rows of tiles that are computed at once."""
    rows = max(1, min(high, TILES // wide))
    together = max(1, TILES // (high * wide))
    ranges = (range(at, min(at + together, images)) for at in range(0, images, together))
    lines = [range(at, min(at + rows, high)) for at in range(0, high, rows)]
    yield from pairs(ranges, lines)
