"""The header of a safetensors file, read and checked: where each tensor lies.

8 bytes little-endian n | n bytes of JSON {name: {dtype, shape, data_offsets}} | data
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldm.errors import CheckpointError

DTYPES = {  # in the order in which a file has their tensors
    "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "I32": torch.int32,
    "BF16": torch.bfloat16, "F16": torch.float16, "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER = 100 * 2**20  # bytes; as the reference implementation

# What a file that is no safetensors file begins with, and what it then is.
OTHERS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes; name it .ckpt, or get the model as safetensors",
    b"\x80": "a bare Python pickle, which is never executed; get the model as safetensors",
    b"<": "an HTML or XML page, probably a failed download; download the file again",
    b"version https://git-lfs": "a git-lfs pointer, not the file itself; run `git lfs pull`",
    b"GGUF": "a GGUF file, whose weights are quantised; use the safetensors file of the model",
}


class Entry(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # first byte, counted from the beginning of the file
    end: int


def read_header(path: Path, first: bytes, file: Any, size: int) -> tuple[dict[str, Any], int]:
    """The JSON of the header and where the data begins."""
    if not first:
        raise CheckpointError(f"{path} is empty; download it again")
    start = first + file.read(24)
    for magic, what in OTHERS.items():
        if start.startswith(magic) and not start[8:9] == b"{":
            raise CheckpointError(f"{path} is not a safetensors file but {what}")
    if len(first) < 8:
        raise CheckpointError(f"{path} is truncated after {len(first)} bytes; download it again")
    length = int.from_bytes(first, "little")
    if length > MOST_HEADER:
        raise CheckpointError(
            f"{path} is not a safetensors file: its first bytes {first!r} would mean a header of {length} "
            "bytes; look at what was downloaded"
        )
    if start[8:9] not in (b"{", b""):
        raise CheckpointError(
            f"{path} is not a safetensors file: its header begins with {start[8:16]!r}, not with '{{'; "
            "look at what was downloaded"
        )
    if 8 + length > size:
        raise CheckpointError(
            f"{path} is truncated: its header needs {8 + length} bytes of {size}; download it again"
        )
    file.seek(8)
    try:
        return json.loads(
            file.read(length), object_pairs_hook=lambda pairs: no_duplicates(path, pairs)
        ), 8 + length
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # of which one is a number with too many digits
        raise CheckpointError(f"{path} has a damaged header ({error}); download it again") from error


def no_duplicates(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict, unless a key occurs twice."""
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(
            f"{path} has the key {twice!r} twice, so one of the two is wrong; write it again"
        )
    return out


def read_entry(path: Path, name: str, value: Any, data: int) -> Entry:
    """One tensor's line of the header."""
    try:
        dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        numbers = (*shape, start, end)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a size or offset is no whole number")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the header's line for {name} is damaged ({error!r}); download the file again"
        ) from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} has the unknown dtype {dtype!r}; convert it to one of {', '.join(DTYPES)}"
        )
    count = 1
    for n in shape:
        count *= n
    if end - start != count * DTYPES[dtype].itemsize:
        raise CheckpointError(
            f"{path}: {name} has shape {shape} of {dtype} but {end - start} bytes of data; download it again"
        )
    return Entry(DTYPES[dtype], shape, data + start, data + end)


def check_layout(path: Path, entries: Mapping[str, Entry], data: int, size: int) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    at = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            raise CheckpointError(
                f"{path}: the data of {name} begins at byte {entry.start}, not at {at}; write the file again"
            )
        at = entry.end
    if at > size:
        raise CheckpointError(
            f"{path} is truncated: it should have {at} bytes and has {size}; download it again"
        )
    if at < size:
        raise CheckpointError(f"{path} has {size - at} bytes behind its last tensor; download it again")
