"""Legacy `.ckpt` files, read without executing anything.

torch.save writes a zip archive: `data.pkl`, a pickle of the state dict, in which each tensor refers to a
storage, and the storages' bytes as members. What comes out here is where each tensor's bytes lie in the file.
"""

import zipfile
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ldm.checkpoint.pickles import Machine, Place
from ldm.errors import CheckpointError

MOST_PICKLE = 64 * 2**20  # bytes of data.pkl


def read_ckpt(
    path: Path, within: str = "state_dict"
) -> dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]:
    """Tensor -> (dtype, shape, first byte, last byte + 1) of a `.ckpt`. Raises CheckpointError.

    within  under which name they are, if they are not all that there is
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise CheckpointError(f"{path} has a member twice; download it again")
            root = root_of(path, members)
            with path.open("rb") as file:
                offsets = {name: offset(path, file, info) for name, info in members.items()}
            if members[f"{root}data.pkl"].file_size > MOST_PICKLE:
                raise CheckpointError(f"{path}: data.pkl is larger than {MOST_PICKLE} bytes")
            order = f"{root}byteorder"
            if order in members and archive.read(order).strip() != b"little":
                raise CheckpointError(f"{path} is not little-endian; save it again on a usual machine")
            tree = Machine(path).run(archive.read(f"{root}data.pkl"))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{path} is a damaged zip archive ({error}); download it again") from error
    out = {}
    for key, place in state_dict(path, tree, within).items():
        member = f"{root}data/{place.member}"
        if member not in members:
            raise CheckpointError(f"{path}: {key} is in the storage {place.member}, which is missing")
        size, begin = place.dtype.itemsize, place.first * place.dtype.itemsize
        if members[member].file_size != place.items * size:
            raise CheckpointError(
                f"{path}: {key} is in the storage {place.member} of {place.items} items of {size} bytes, "
                f"which has {members[member].file_size} bytes; get the file again"
            )
        start, end = offsets[member], begin + prod(place.shape) * size
        out[key] = (place.dtype, place.shape, start + begin, start + end)
    return out


def root_of(path: Path, members: dict[str, zipfile.ZipInfo]) -> str:
    """The folder in the archive under which all lies."""
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("data.pkl")]
    if len(roots) != 1:
        raise CheckpointError(f"{path} is a zip archive without one data.pkl, so torch.save did not write it")
    return roots[0]


def offset(path: Path, file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """The first byte of a member's data. Raises CheckpointError unless it is stored as it is."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise CheckpointError(
            f"{path}: {info.filename} is compressed or encrypted; torch.save stores it plain"
        )
    file.seek(info.header_offset)
    header = file.read(30)
    name = file.read(int.from_bytes(header[26:28], "little"))
    start = info.header_offset + 30 + len(name) + int.from_bytes(header[28:30], "little")
    size = file.seek(0, 2)
    if header[:4] != b"PK\x03\x04" or name.decode("utf-8", "replace") != info.filename:
        raise CheckpointError(f"{path}: the two headers of {info.filename} differ; download it again")
    if start + info.file_size > size:
        raise CheckpointError(f"{path} is truncated: {info.filename} ends behind it; download it again")
    return start


def state_dict(path: Path, tree: Any, within: str) -> dict[str, Place]:
    """The weights in what a pickle holds."""
    found = tree.get(within, tree) if isinstance(tree, dict) else tree
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no state dict but a {type(found).__name__}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Place):
            raise CheckpointError(f"{path}: {key!r} in the state dict is no tensor; it cannot be loaded")
    return found
