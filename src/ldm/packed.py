"""Networks made ready to draw on a CPU: the same functions to rounding, in less time and memory.

PyTorch brings a weight into the order of the processor's kernels at every call, reads and writes a picture
for every norm, gate and sum, and keeps what it read of a file. Here products are oneDNN's, on weights as they
lie in the file; 3×3 convolutions are `winograd`'s, and what stands around them is `fused` with them; and the
pages of a file are given back level by level (`pages`).
What is packed draws and does nothing else: its weights are not to be trained, changed, moved or saved.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import DeviceError, InputError
from ldm.fused import convolution, geglu, group_norm, res_block, strided, untrained, upsample
from ldm.layers import Downsample, ResBlock, Upsample
from ldm.methods import take
from ldm.pages import Range, forget, mapped, unwritten
from ldm.unet.blocks import GEGLU
from ldm.unet.unet import Level, Mid, UNet
from ldm.winograd import DEEP_PIXELS, DOUBLED, Convolution, linear

LEAST = 32  # channels of what is packed
LEAST_TILED = 128  # channels of what is computed by tiles: with fewer the sums take longer than they save
DEEP = 3  # levels of a UNet, from which on it has few pixels and most of its weights


def packable() -> bool:
    """Whether this build of PyTorch can."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def check(network: nn.Module) -> None:
    """Raises DeviceError, InputError where a network cannot be made ready, nor is it."""
    if is_packed(network):
        return
    if not packable():
        raise DeviceError("this PyTorch has no oneDNN, which computes what is packed; load without fast=True")
    for name, p in network.named_parameters():
        if p.device.type != "cpu" or p.dtype != torch.float32:
            remedy = 'device="cpu"' if p.device.type != "cpu" else "dtype=torch.float32"
            what = f"{name} is {p.dtype} on {p.device}; what is packed is float32 on the CPU"
            raise InputError(f"{what}: load with {remedy}")


@torch.no_grad()
def pack(network: nn.Module) -> None:
    """Make a network ready, in place; its weights may be let go of. Raises as `check`."""
    if is_packed(network):
        return
    check(network)
    files = unwritten()
    for module in network.modules():
        for kind, change in CHANGES.items():
            if isinstance(module, kind):
                change(module, files)
    for module in deep(network):
        for own in vars(module).values():
            if isinstance(own, Convolution):
                own.least = DEEP_PIXELS


def deep(network: nn.Module) -> Iterator[nn.Module]:
    """What sees few pixels."""
    if isinstance(network, UNet) and len(network.down) > DEEP:
        for part in (*network.down[DEEP:], network.mid, *network.up[:-DEEP]):
            yield from part.modules()


def is_packed(network: nn.Module) -> bool:
    """Whether some of it is."""
    return any("packed" in vars(module) for module in network.modules())  # a miss of getattr takes long


def pack_linear(module: nn.Linear, files: list[Range]) -> None:
    """y = x Wᵀ + b."""
    if type(module) is nn.Linear and min(module.weight.shape) >= LEAST:
        take(module, product)


def product(module: nn.Linear, x: Tensor) -> Tensor:
    """As `Linear.forward`."""
    return linear(module.weight, module.bias, untrained(x, module.weight))


def pack_convolution(module: nn.Conv2d, files: list[Range]) -> None:
    """Channels last; a 3×3 convolution of many channels by tiles."""
    plain = module.stride == (1, 1) and module.padding == (1, 1) and module.groups == 1
    if min(module.in_channels, module.out_channels) < LEAST:
        return
    if min(module.weight.shape[:2]) >= LEAST_TILED and module.kernel_size == (3, 3) and plain:
        doubles = isinstance(module, Upsample)
        lasting = doubles or bool(mapped([module.weight], files))  # of a file it takes no memory
        module.tiles = Convolution(lasting)  # type: ignore[assignment]
        if doubles:
            module.doubling = Convolution(lasting, DOUBLED)  # type: ignore[assignment]
    halves = isinstance(module, Downsample) and any(module.padding)
    take(module, strided if halves else convolution, name="_conv_forward")


class Held:
    """Weights in files, whose pages can be given back. A copy of this holds none: its weights are others."""

    def __init__(self, weights: Iterable[Tensor], files: list[Range]):
        self.weights = [w.detach() for w in weights if mapped([w], files)]  # so that they stay where they are
        self.pages = mapped(self.weights, files)
        self.versions = [version(w) for w in self.weights]

    def rest(self) -> None:
        """Give the pages back. Raises InputError where something was written to them, which would be lost."""
        if [version(w) for w in self.weights] != self.versions:
            raise InputError("weights were changed after they were packed; change them, and then pack")
        forget(self.pages)

    def __reduce__(self) -> tuple[Any, ...]:
        return Held, ([], [])


def version(weight: Tensor) -> int:
    """How often it was written to."""
    return 0 if weight.is_inference() else weight._version


def pack_level(module: nn.Module, files: list[Range]) -> None:
    """A network's level gives its pages of the file back when it is done."""
    take(module, level, Held(module.parameters(), files))


def level(module: nn.Module, held: Held, *given: Any, **more: Any) -> Tensor:
    """As the level's own `forward`."""
    out: Tensor = type(module).forward(module, *given, **more)
    held.rest()
    return out


def through(function: Callable[..., Tensor]) -> Callable[[Any, list[Range]], None]:
    """Modules whose `forward` is that function's."""
    return lambda module, files: take(module, function)


CHANGES: dict[type[nn.Module], Callable[[Any, list[Range]], None]] = {
    nn.Linear: pack_linear,
    nn.Conv2d: pack_convolution,
    nn.GroupNorm: through(group_norm),
    ResBlock: through(res_block),
    Upsample: through(upsample),
    GEGLU: through(geglu),
    Level: pack_level,
    Mid: pack_level,
}
