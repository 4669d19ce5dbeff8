"""Attention of the shapes of the families on a GPU in bfloat16, by the kernels here and by PyTorch's.

Each result is compared with float64 before anything is timed. The networks run the fastest of the ways.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_clock import Clock, launched, tried
from benchmarks.table import Row

ROUNDS = 15
APART = 1e-2  # |a - b| / |b| of bfloat16: a result is rounded by up to 2^-9, and so are the shares in it
AT_ONCE = 2**25  # scores
SDPA = ("cudnn", "flash", "efficient")
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Of an attention: b images, h heads d wide, n queries, m keys."""

    where: str
    b: int
    h: int
    n: int
    m: int
    d: int
    goals: tuple[tuple[str, float], ...] = ()  # a peer, or the best; and how many times as fast the kernel is

    @property
    def said(self) -> str:
        """In words."""
        return f"attention, {self.where} ({self.b * self.h}, {self.n}, {self.m}, {self.d})"


OWN = [
    Shape("SD 1.5", 2, 8, 4096, 4096, 40, (("flash", 1.3), ("cudnn", 1.05))),
    Shape("SD 1.5", 2, 8, 1024, 1024, 80),
    Shape("SD 1.5", 2, 8, 256, 256, 160),
    Shape("SD 2.1", 2, 5, 9216, 9216, 64),
    Shape("SD 2.1", 2, 10, 2304, 2304, 64),
    Shape("SDXL", 2, 10, 4096, 4096, 64),
    Shape("SDXL", 2, 20, 1024, 1024, 64),
]
TEXT = [shape._replace(m=77, goals=(("best", 1.5),)) for shape in OWN]
SHAPES = [*OWN, *TEXT, Shape("VAE", 1, 1, 16384, 16384, 512, (("best", 3.0),))]


def rows(device: str = "cuda", clock: Clock = launched, shapes: list[Shape] = SHAPES) -> Iterator[Row]:
    """One of each shape: the way that the networks take; then those of its goals."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for shape in shapes:
        yield from tried(shape.said, of_shape(shape, inputs(shape, device, dtype), clock))


def of_shape(shape: Shape, given: tuple[Tensor, Tensor, Tensor], clock: Clock) -> Iterator[Row]:
    """The rows of one shape."""
    from ldm_kernels import choice
    from ldm_kernels.backend import run

    errors = right(run.ways, given)
    contestants = {name: partial(run.ways[name], *given) for name in errors}
    times = clock(contestants, ROUNDS)
    taken = run.first if choice.INTERPRETED else run.fastest(*given)
    yield from told(shape, times, errors, taken)


def told(shape: Shape, times: dict[str, float], errors: dict[str, float], taken: str) -> Iterator[Row]:
    """What is to be said of times and errors."""
    peers = {name: times[name] for name in SDPA if name in times}
    best = min(peers, key=peers.__getitem__, default=None)
    each = ", ".join(
        f"{name} {1e6 * times[name]:.1f} µs ({errors[name]:.0e})" if name in times else f"{name}: none"
        for name in ("triton", *SDPA, "plain")
    )
    theirs = None if best is None else peers[best]
    yield Row(shape.said, times.get(taken), theirs, ratio=0.98, note=f"by {taken}; {each}")
    for name, ratio in shape.goals:
        peer = best if name == "best" else name
        if peer in times:
            note = "the kernel here, whatever is taken"
            yield Row(f"  its kernel to {peer}", times["triton"], times[peer], ratio=ratio, note=note)


def inputs(shape: Shape, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of unit variance, as parts of fused projections."""
    generator = torch.Generator(device).manual_seed(shape.n + shape.m + shape.d)
    width = shape.h * shape.d

    def parts(length: int, count: int) -> list[Tensor]:
        x = torch.randn(shape.b, length, count * width, generator=generator, device=device, dtype=dtype)
        return [part.unflatten(2, (shape.h, shape.d)).transpose(1, 2) for part in x.chunk(count, dim=2)]

    q, k, v = parts(shape.n, 3) if shape.n == shape.m else [*parts(shape.n, 1), *parts(shape.m, 2)]
    return q, k, v


def right(ways: dict[str, Way], given: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """How far each way is from float64, of those that know such inputs and are not too far.

    Raises AssertionError where the kernel here is.
    """
    wanted, errors = exact(*given), {}
    for name, way in ways.items():
        try:
            found = way(*given)
        except RuntimeError:
            if name == "triton":
                raise
            continue
        error = float((found.double() - wanted).norm() / wanted.norm())
        if error < APART:
            errors[name] = error
        elif name == "triton":
            raise AssertionError(f"{error:.1e} from attention in float64: not the same function")
    return errors


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v in float64, of some queries at a time. [b h n d]"""
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    rows = max(1, AT_ONCE // k.shape[2])
    for i in range(q.shape[0]):
        for j in range(q.shape[1]):
            keys, values = k[i, j].double().T, v[i, j].double()
            for part, to in zip(q[i, j].split(rows), out[i, j].split(rows), strict=True):
                to.copy_((part.double() @ keys / q.shape[3] ** 0.5).softmax(dim=-1) @ values)
    return out
