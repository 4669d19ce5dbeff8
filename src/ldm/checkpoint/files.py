"""Files of tensors: read by header, mapped or read tensor by tensor, written whole or not at all.

A safetensors file, which is all that is ever written, is

8 bytes little-endian n | n bytes of JSON {name: {dtype, shape, data_offsets}} | data
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.checkpoint.ckpt import read_ckpt
from ldm.errors import CheckpointError

DTYPES = {  # in the order in which a file has their tensors
    "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "I32": torch.int32,
    "BF16": torch.bfloat16, "F16": torch.float16, "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ZIPPED = (".ckpt", ".pt", ".pth")  # what torch.save's archives are called
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


@dataclass(frozen=True)
class File:
    """A safetensors file, or a `.ckpt`, whose header has been read and checked."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> "File":
        """Read the header. Raises CheckpointError for whatever is not a whole, sound file of tensors."""
        try:
            with path.open("rb") as file:
                if path.suffix in ZIPPED and file.read(4) == b"PK\x03\x04":
                    return cls(path, {name: Entry(*place) for name, place in read_ckpt(path).items()}, {})
                file.seek(0)
                size = os.fstat(file.fileno()).st_size
                header, data = read_header(path, file.read(8), file, size)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise CheckpointError(f"{path}: __metadata__ must map names to texts; write the file again")
        entries = {name: read_entry(path, name, value, data) for name, value in header.items()}
        check_layout(path, entries, data, size)
        return cls(path, entries, metadata)

    @cached_property
    def mapped(self) -> Tensor:
        """All bytes of the file, mapped and private: pages are read when touched and never written back."""
        size = os.path.getsize(self.path)
        return torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8)

    def view(self, name: str) -> Tensor:
        """A tensor that maps the file."""
        entry = self.entries[name]
        flat = self.mapped[entry.start : entry.end]
        if entry.start % entry.dtype.itemsize:
            flat = flat.clone()  # old writers did not align the data, and tensors must be
        return flat.view(entry.dtype).reshape(entry.shape)

    def read(self, name: str) -> Tensor:
        """A tensor read into memory of its own."""
        entry = self.entries[name]
        buffer = bytearray(entry.end - entry.start)
        if not buffer:
            return torch.empty(entry.shape, dtype=entry.dtype)
        with self.path.open("rb") as file:
            file.seek(entry.start)
            if file.readinto(buffer) != len(buffer):
                raise CheckpointError(f"{self.path} was cut short while it was read; load it again")
        return torch.frombuffer(buffer, dtype=entry.dtype).reshape(entry.shape)


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


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file with the tensors in the usual order: of dtypes, then of names.

    One tensor at a time is copied. Raises CheckpointError, leaving nothing behind, if it cannot be written.
    """
    place = {dtype: i for i, dtype in enumerate(NAMES)}
    order = sorted(tensors, key=lambda name: (place[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


@contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A file that takes the place of `path` when, and only when, it is completely on the disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror or error}; nothing was changed"
        ) from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
