"""What may stand in a tensor that is loaded or saved."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from ldm.checkpoint.files import File
from ldm.errors import CheckpointError

WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
Span = tuple[int, int, torch.dtype]  # of a file: first byte, end, what is there


def check_file(file: File, names: Collection[str]) -> None:
    """Raises CheckpointError for tensors of a file with values that are not finite."""
    shares = torch.get_num_threads()

    def sound(share: int) -> bool:
        spans = (part(span, share, shares) for span in runs(file, names))
        return all(all_finite(piece) for span in spans for piece in file.pieces(*span))

    with ThreadPoolExecutor(shares) as pool:
        if all(pool.map(sound, range(shares))):
            return
    for name in sorted(names):
        check_finite(file.read(name), f"{file.path}: {name}")


def runs(file: File, names: Collection[str]) -> Iterator[Span]:
    """Where tensors of a file are, neighbours of one dtype together."""
    start = end = 0
    dtype = None
    for entry in sorted((file.entries[name] for name in names), key=lambda entry: entry.start):
        if dtype and (entry.start, entry.dtype) != (end, dtype):
            yield start, end, dtype
            dtype = None
        if not dtype:
            start, dtype = entry.start, entry.dtype
        end = entry.end
    if dtype:
        yield start, end, dtype


def part(span: Span, share: int, shares: int) -> Span:
    """One of several equal shares of a span, in whole numbers of its dtype."""
    start, end, dtype = span
    count = (end - start) // dtype.itemsize
    first, last = (start + count * i // shares * dtype.itemsize for i in (share, share + 1))
    return first, last, dtype


def check_finite(tensor: Tensor, name: str) -> None:
    """Raises CheckpointError naming a tensor with values that are not finite."""
    if not all_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{name} has {bad} values that are not finite; the file is damaged, get it again"
        )


def narrowed(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in another dtype. Raises CheckpointError naming it where a value would become infinite."""
    out = tensor.to(dtype)
    narrower = torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    if narrower and not all_finite(out) and (lost := torch.isfinite(tensor) & ~torch.isfinite(out)).any():
        raise CheckpointError(
            f"{name} has {int(lost.sum())} values beyond the range of {dtype}; use dtype=torch.float32"
        )
    return out


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN.

    As whole numbers, the bits of finite values of either sign are below those of infinity, and NaN's above.
    """
    if not tensor.numel():
        return True
    whole = tensor.detach().cpu().contiguous().view(WHOLE[tensor.dtype.itemsize]).numpy()
    unsigned = whole.view(f"u{whole.dtype}")
    return bool(whole.max() < infinity(tensor.dtype, 1) and unsigned.max() < infinity(tensor.dtype, -1))


@cache
def infinity(dtype: torch.dtype, sign: int) -> int:
    """The bits of infinity of a sign, as a whole number without one."""
    bits = torch.tensor(sign * torch.inf, dtype=dtype).view(WHOLE[dtype.itemsize])
    return int(bits) % 2 ** (8 * dtype.itemsize)
