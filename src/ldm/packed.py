"""Networks made ready to draw on a CPU: the same functions, their weights brought into order once.

PyTorch brings a weight into the order of the processor's kernels at every call, which for the deep levels of
a UNet, with few pixels and many channels, takes as long as the product itself. And a 3×3 convolution needs
fewer products than it seems to (Winograd 1980; Lavin & Gray 2016, sec. 4.1): for the 2×2 pixels of a tile

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A          16 products a channel instead of 36

where g is the kernel and d the tile with a border. Summed over channels, ⊙ is 16 products of matrices.
What is packed draws and does nothing else: it has no weights to be trained, changed or saved.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import DeviceError, InputError

LEAST = 32  # channels of what is packed
LEAST_TILED = 128  # channels of what is computed by tiles: with fewer the sums take longer than they save
TILES = 512  # at once, so that they stay in the cache
MANY = 128 * 128  # pixels
CACHED = 2**19  # numbers at once
ROWS, SIDE = 1024, 32  # tokens and pixels along a side for which an order is chosen; it serves others as well
KERNEL = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])  # G


def packable() -> bool:
    """Whether this build of PyTorch can."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


@torch.no_grad()
def pack(network: nn.Module) -> None:
    """Make a network ready, in place; its weights are let go of. Raises DeviceError, InputError."""
    if not packable():
        raise DeviceError("this PyTorch has no oneDNN, which packs weights; load without fast=True")
    for name, p in network.named_parameters():
        if p.device.type != "cpu" or p.dtype != torch.float32:
            raise InputError(f"{name} is {p.dtype} on {p.device}; what is packed is float32 on the CPU")
    for module in network.modules():
        if module._parameters.get("weight") is None:  # it is packed already
            continue
        if type(module) is nn.Linear:
            pack_linear(module)
        elif isinstance(module, nn.Conv2d):
            pack_convolution(module)
        elif isinstance(module, nn.GroupNorm):
            module.forward = partial(group_norm, module)  # type: ignore[method-assign]


def is_packed(network: nn.Module) -> bool:
    """Whether some of its weights are."""
    return any(getattr(module, "packed", False) for module in network.modules())


def pack_linear(module: nn.Linear) -> None:
    """y = x Wᵀ + b."""
    if min(module.weight.shape) < LEAST:
        return
    weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), ROWS)
    take(module, "forward", partial(linear, weight, module.bias))


def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """x [… c] -> [… c']."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(untrained(x), weight, bias, "none", [], "")
    return y


def pack_convolution(module: nn.Conv2d) -> None:
    """By tiles, where that is less; else its weight in order. Few channels stay as they are, but lie last."""
    weight = module.weight.detach()
    least = min(weight.shape[:2])
    if least < LEAST:
        module.weight.data = weight.contiguous(memory_format=torch.channels_last)
        return
    plain = module.stride == (1, 1) and module.padding == (1, 1) and module.groups == 1
    if least >= LEAST_TILED and module.kernel_size == (3, 3) and plain:
        take(module, "_conv_forward", Tiled(weight, module.bias))
    else:
        take(module, "_conv_forward", Ordered(module, weight))


def take(module: nn.Module, name: str, function: Callable[..., Tensor]) -> None:
    """Let a function compute what the module's weight did."""
    setattr(module, name, function)
    module._parameters["weight"] = None
    module.packed = True  # type: ignore[assignment]


def group_norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm of x [b c h w]; where there are many pixels, from the moments of some rows at a time.

    PyTorch's own of channels that lie last adds up a million float32 numbers one by one.
    """
    b, _, h, w = x.shape
    if h * w < MANY or not x.is_contiguous(memory_format=torch.channels_last):
        return F.group_norm(x, module.num_groups, module.weight, module.bias, module.eps)
    y, out = (rearrange(z, "b c h w -> b h w c") for z in (x, torch.empty_like(x)))
    for i in range(b):
        shift, scale = factors(module, x[i : i + 1])
        torch.addcmul(shift, y[i], scale, out=out[i])
    return rearrange(out, "b h w c -> b c h w")


def factors(module: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """shift and scale [c] of an image [1 c h w], from the moments of some rows at a time."""
    groups, (_, c, h, w) = module.num_groups, x.shape
    lines = x.split(max(1, CACHED // (c * w)), dim=2)
    told = [torch.native_group_norm(y, None, None, 1, c, y.shape[2] * w, groups, 0.0) for y in lines]
    share = torch.tensor([y.shape[2] / h for y in lines], dtype=torch.float64)
    means = torch.stack([mean[0] for _, mean, _ in told], dim=1).double()  # [groups lines]
    mean = (means * share).sum(1, keepdim=True)
    spreads = torch.stack([root[0] for _, _, root in told], dim=1).double() ** -2  # (1 / 0)^-2 of one colour
    spread = ((spreads + (means - mean).square()) * share).sum(1, keepdim=True)
    scale = rearrange(module.weight, "(g k) -> g k", g=groups) * (spread + module.eps).rsqrt()
    shift = rearrange(module.bias, "(g k) -> g k", g=groups) - mean * scale
    return shift.flatten().float(), scale.flatten().float()


def untrained(x: Tensor) -> Tensor:
    """x, which nothing is to be learnt of. Raises InputError."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise InputError("what is packed has no gradients; load without fast=True, or use torch.no_grad()")
    return x


class Ordered:
    """A convolution whose weight is in the order of oneDNN."""

    def __init__(self, module: nn.Conv2d, weight: Tensor):
        self.how = list(module.padding), list(module.stride), list(module.dilation), module.groups
        size = [1, module.in_channels, SIDE, SIDE]
        last = weight.contiguous(memory_format=torch.channels_last)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(last, *self.how, size)

    def __call__(self, x: Tensor, _: None, bias: Tensor | None) -> Tensor:
        x = untrained(x).contiguous(memory_format=torch.channels_last)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, self.weight, bias, *self.how, "none", [], "")
        return y


class Tiled:
    """A 3×3 convolution of stride 1 and padding 1 by tiles of 2×2."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        flat = rearrange(weight, "o c i j -> (i j) (o c)").contiguous()
        transformed = (torch.kron(KERNEL, KERNEL) @ flat).unflatten(1, weight.shape[:2])  # G g Gᵀ
        self.weights = [torch.ops.mkldnn._reorder_linear_weight(each, TILES) for each in transformed]
        self.channels = len(weight)

    def __call__(self, x: Tensor, _: None, bias: Tensor | None) -> Tensor:
        """x [b c h w] -> [b c' h w], channels last in memory."""
        b, h, w = (untrained(x).shape[axis] for axis in (0, 2, 3))
        high, wide = -(-h // 2), -(-w // 2)  # tiles; an odd size has a border more
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + w % 2, 1, 1 + h % 2))
        out = x.new_empty(b, 2 * high, 2 * wide, self.channels)
        for images, rows in parts(b, high, wide):
            first, last = 2 * rows.start, 2 * rows.stop
            seen = padded[images.start : images.stop, first : last + 2]
            y = out[images.start : images.stop, first:last]
            self.some(seen, y.unflatten(2, (wide, 2)).unflatten(1, (len(rows), 2)), bias)
        return out[:, :h, :w].permute(0, 3, 1, 2)

    def some(self, x: Tensor, y: Tensor, bias: Tensor | None) -> None:
        """The tiles of some rows: x [b 2r+2 2t+2 c] into y [b r 2 t 2 c']."""
        c, (b, r, _, t, *_) = x.shape[3], y.shape
        m = [
            [linear(w, None, v.reshape(-1, c)) for w, v in zip(weights, halved(part, 2, t), strict=True)]
            for part, weights in zip(halved(x, 1, r), quarters(self.weights), strict=True)
        ]
        upper = [m0.add_(m1).add_(m2) for m0, m1, m2 in zip(m[0], m[1], m[2], strict=True)]
        lower = [m1.sub_(m2).sub_(m3) for m1, m2, m3 in zip(m[1], m[2], m[3], strict=True)]
        for i, line in enumerate((upper, lower)):
            left, right = line[0] + line[1] + line[2], line[1] - line[2] - line[3]
            for j, half in enumerate((left, right)):
                half = half.view(b, r, t, -1)
                y[:, :, i, :, j] = half if bias is None else half.add_(bias)


def halved(x: Tensor, axis: int, count: int) -> Iterator[Tensor]:
    """Bᵀ along an axis: of `count` overlapping fours d of numbers d0 - d2, d1 + d2, d2 - d1 and d1 - d3."""
    d0, d1, d2, d3 = (x.narrow(axis, i, 2 * count - 1).unfold(axis, 1, 2).squeeze(-1) for i in range(4))
    yield from (d0 - d2, d1 + d2, d2 - d1, d1 - d3)


def quarters(weights: list[Tensor]) -> list[list[Tensor]]:
    """16 in rows of 4."""
    return [weights[i : i + 4] for i in range(0, 16, 4)]


def parts(images: int, high: int, wide: int) -> Iterator[tuple[range, range]]:
    """Images and rows of tiles that are computed at once."""
    rows = max(1, min(high, TILES // wide))
    together = max(1, TILES // (high * wide))
    ranges = (range(at, min(at + together, images)) for at in range(0, images, together))
    lines = [range(at, min(at + rows, high)) for at in range(0, high, rows)]
    yield from product(ranges, lines)
