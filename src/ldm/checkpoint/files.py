"""Files of tensors: read by header, mapped or read tensor by tensor, written whole or not at all.

A safetensors file is all that is ever written.
"""

import json
import mmap
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.ckpt import read_ckpt
from ldm.checkpoint.header import NAMES, Entry, check_layout, read_entry, read_header
from ldm.errors import CheckpointError

ZIPPED = (".ckpt", ".pt", ".pth")  # what torch.save's archives are called
PIECE = 2**22  # bytes
AROUND = 2**16  # bytes; Linux maps so many about a page that is touched


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
                    return cls.unpickled(path)
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

    @classmethod
    def unpickled(cls, path: Path, within: str = "state_dict") -> "File":
        """An archive of torch.save, whatever it is called; within: as `read_ckpt`. Raises CheckpointError."""
        return cls(path, {name: Entry(*place) for name, place in read_ckpt(path, within).items()}, {})

    @cached_property
    def pages(self) -> mmap.mmap:
        """The file, mapped and private: pages are read when touched and never written back."""
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    @cached_property
    def mapped(self) -> Tensor:
        """All bytes of the mapped file."""
        return torch.frombuffer(self.pages, dtype=torch.uint8)

    def view(self, name: str) -> Tensor:
        """A tensor that maps the file."""
        entry = self.entries[name]
        flat = self.mapped[entry.start : entry.end]
        if entry.start % entry.dtype.itemsize:
            flat = flat.clone()  # old writers did not align the data, and tensors must be
        return flat.view(entry.dtype).reshape(entry.shape)

    def forget(self, name: str) -> None:
        """Give the memory back that a view of a tensor took by being read; what was written to it is lost."""
        if hasattr(self.pages, "madvise"):  # not on Windows
            entry = self.entries[name]
            first = entry.start - entry.start % AROUND
            last = min(entry.end + AROUND, len(self.pages))
            self.pages.madvise(mmap.MADV_DONTNEED, first, last - first)

    def read(self, name: str) -> Tensor:
        """A tensor read into memory of its own."""
        entry = self.entries[name]
        out = torch.empty(entry.shape, dtype=entry.dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            self.fill(out, file)
        return out

    def pieces(self, start: int, end: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """The numbers between two bytes, flat, some at a time, each time in the same memory."""
        room = torch.empty(min(PIECE, end - start) // dtype.itemsize, dtype=dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            for at in range(start, end, PIECE):
                piece = room[: (end - at) // dtype.itemsize]
                self.fill(piece, file)
                yield piece

    def fill(self, room: Tensor, file: FileIO) -> None:
        """Read on in the open file until a tensor is full."""
        left: Any = room.reshape(-1).view(torch.uint8).numpy()
        while len(left):
            count = file.readinto(left)
            if not count:
                raise CheckpointError(f"{self.path} was cut short while it was read; load it again")
            left = left[count:]


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
