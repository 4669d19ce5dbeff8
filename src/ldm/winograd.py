"""3×3 convolutions on a CPU, of images whose channels lie last, some rows at a time.

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A          16 products a channel for 2×2 pixels, instead of 36

where g is the kernel and d a tile of 2×2 pixels with a border (Winograd 1980; Lavin & Gray 2016, sec. 4.1).
Summed over channels, ⊙ is 16 products of matrices. Where there are few pixels, g takes longer to be read than
to be used: there it is used as it lies in the file, and the pixels are unfolded.

Rows are made when they are needed, by a function of the images and rows that are asked for; so norms and
gates before a convolution, and sums after it, cost no memory beside the cache.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product as pairs
from threading import Lock

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import InputError
from ldm.pages import Range, mapped

Rows = Callable[[range, range], Tensor]  # of images and rows -> their pixels [b r w c]

TILES = 512  # at once, so that they stay in the cache
FEW = 64  # rows of a product
LEAST_PIXELS, DEEP_PIXELS = 8 * 8, 16 * 16  # of an image that is computed by tiles, by many weights
MAKING = Lock()  # kernels of tiles, by one thread at a time
KERNEL = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])  # G


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


class Convolution:
    """A 3×3 convolution of stride 1 and padding 1, by tiles or unfolded."""

    def __init__(self, module: nn.Conv2d, files: list[Range]):
        self.least = LEAST_PIXELS
        self.tiled: Tensor | None = None
        self.lasting = bool(mapped([module.weight], files))  # kept beside the tiles' it takes no memory

    def kernels(self, module: nn.Conv2d) -> Tensor:
        """G g Gᵀ [16 c' c], made at the first use. The weight is let go of where it takes memory."""
        with MAKING:
            if self.tiled is None:
                weight = module.weight.detach()
                self.tiled = transformed(weight)
                if not self.lasting:  # of it stays what it was like
                    module.weight = nn.Parameter(weight.to("meta"), requires_grad=False)
            return self.tiled

    def __call__(
        self, module: nn.Conv2d, rows: Rows, size: tuple[int, ...], bias: Tensor, skip: Rows | None
    ) -> Tensor:
        """rows [b h w c] of a size (b, h, w) -> [b h w c']. bias [b or 1, c']; skip [b h w c'] is added."""
        b, h, w = size
        weight = module.weight
        out = bias.new_empty(b, h, w, module.out_channels)
        product: Callable[[Tensor], Tensor]
        if weight.is_meta or h * w >= self.least:
            product = partial(by_tiles, self.kernels(module))
        else:
            product = partial(unfolded, weight)
        for images, lines in parts(b, -(-h // 2), -(-w // 2)):
            some = range(2 * lines.start, min(2 * lines.stop, h))
            seen = bordered(rows, images, some, h, 2 * len(lines))
            y = product(seen)[:, : len(some), :w]
            own = slice(images.start, images.stop)
            y += bias[own if len(bias) > 1 else slice(None), None, None]
            place = out[own, some.start : some.stop]
            place.copy_(y) if skip is None else torch.add(y, skip(images, some), out=place)
        return out


def transformed(weight: Tensor) -> Tensor:
    """G g Gᵀ of kernels [c' c 3 3] -> [16 c' c]."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        both = torch.kron(KERNEL, KERNEL)
        parts = [both @ rearrange(part, "o c i j -> (i j) (o c)") for part in weight.split(64)]
        return torch.cat([part.unflatten(1, (-1, weight.shape[1])) for part in parts], dim=1)


def bordered(rows: Rows, images: range, some: range, high: int, wanted: int) -> Tensor:
    """Rows with a border of zeros or of their neighbours [b 2r+2 2t+2 c]; odd sizes have one more."""
    first, last = max(some.start - 1, 0), min(some.stop + 1, high)
    x = rows(images, range(first, last))
    above = first - (some.start - 1)
    return F.pad(x, (0, 0, 1, 1 + x.shape[2] % 2, above, wanted + 2 - above - len(range(first, last))))


def unfolded(weight: Tensor, seen: Tensor, stride: int = 1) -> Tensor:
    """[b h+2 w+2 c] -> [b h w c'] as one product of matrices, with the weight in the file's order."""
    patches = seen.unfold(1, 3, stride).unfold(2, 3, stride)  # [b h w c 3 3]
    return linear(weight.flatten(1), None, rearrange(patches, "b h w c i j -> b h w (c i j)"))


def by_tiles(weights: Tensor, x: Tensor) -> Tensor:
    """[b 2r+2 2t+2 c] -> [b 2r 2t c'] with weights [16 c' c]."""
    b, high, wide, c = x.shape
    r, t = high // 2 - 1, wide // 2 - 1
    m = [
        [linear(w, None, v.reshape(-1, c)) for w, v in zip(four, halved(part, 2, t), strict=True)]
        for part, four in zip(halved(x, 1, r), weights.split(4), strict=True)
    ]
    y = x.new_empty(b, r, 2, t, 2, weights.shape[1])
    upper = [m0.add_(m1).add_(m2) for m0, m1, m2 in zip(m[0], m[1], m[2], strict=True)]
    lower = [m1.sub_(m2).sub_(m3) for m1, m2, m3 in zip(m[1], m[2], m[3], strict=True)]
    for i, (m0, m1, m2, m3) in enumerate((upper, lower)):
        left, right = m0.add_(m1).add_(m2), m1.sub_(m2).sub_(m3)
        for j, half in enumerate((left, right)):
            y[:, :, i, :, j] = half.view(b, r, t, -1)
    return rearrange(y, "b r i t j c -> b (r i) (t j) c")


def halved(x: Tensor, axis: int, count: int) -> Iterator[Tensor]:
    """Bᵀ along an axis: of `count` overlapping fours d of numbers d0 - d2, d1 + d2, d2 - d1 and d1 - d3."""
    d0, d1, d2, d3 = (x.narrow(axis, i, 2 * count - 1).unfold(axis, 1, 2).squeeze(-1) for i in range(4))
    yield from (d0 - d2, d1 + d2, d2 - d1, d1 - d3)


def parts(images: int, high: int, wide: int) -> Iterator[tuple[range, range]]:
    """Images and rows of tiles that are computed at once."""
    rows = max(1, min(high, TILES // wide))
    together = max(1, TILES // (high * wide))
    ranges = (range(at, min(at + together, images)) for at in range(0, images, together))
    lines = [range(at, min(at + rows, high)) for at in range(0, high, rows)]
    yield from pairs(ranges, lines)
