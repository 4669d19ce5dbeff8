"""What may stand in a tensor that is loaded or saved."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ldm.errors import CheckpointError


def check_finite(tensor: Tensor, name: str) -> None:
    """Raises CheckpointError naming a tensor with values that are not finite."""
    check_pieces([tensor], name)


def check_pieces(pieces: Iterable[Tensor], name: str) -> None:
    """The same of a tensor in pieces."""
    bad = sum(0 if all_finite(piece) else int((~torch.isfinite(piece)).sum()) for piece in pieces)
    if bad:
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
    """Whether no value is infinite or NaN."""
    # a sum shows NaN and infinity in one fast pass; it may overflow itself, so then every value is looked at
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())
