"""A folder that says of itself what is in it: whether it is whole can be told at any time.

    NAME.safetensors, one per group of tensors
    state.json: {format, step, facts, versions, files: {NAME.safetensors: {size, sha256}}, sha256}

The last is the hash of the rest of state.json, as JSON with its keys sorted.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.files import File, replacing, write
from ldm.checks import shown
from ldm.errors import CheckpointError

FORMAT = "ldm training checkpoint 1"
STATE, WEIGHTS = "state.json", ".safetensors"
GROUP = re.compile(r"[a-z0-9][a-z0-9_-]*")
PIECE = 2**20  # bytes

Groups = Mapping[str, Mapping[str, Tensor]]


def seal(folder: Path, step: int, tensors: Groups, facts: Any, versions: Mapping[str, str]) -> None:
    """Write all into an empty folder and read it back. Raises CheckpointError."""
    files = {f"{group}{WEIGHTS}": write_group(folder, group, named) for group, named in tensors.items()}
    state = {"format": FORMAT, "step": step, "facts": facts, "versions": versions, "files": files}
    with replacing(folder / STATE) as file:
        file.write(json.dumps(state | {"sha256": own_hash(state)}, indent=1).encode())
    verified(folder)


def write_group(folder: Path, group: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a file; the size it must have, and the hash that its header and the tensors in memory have."""
    path = folder / f"{group}{WEIGHTS}"
    write(path, tensors, {"format": "pt"})
    entries = sorted(File.open(path).entries.items(), key=lambda item: item[1].start)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(file.read(entries[0][1].start if entries else size))
        if hasattr(os, "posix_fadvise"):  # neither on Windows nor on macOS
            # what is read back then comes from the disk, not from the memory that was to go there
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for name, _ in entries:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return {"size": size, "sha256": digest.hexdigest()}


def is_whole(path: Path) -> bool:
    """Whether a checkpoint could be loaded."""
    try:
        return bool(verified(path))
    except CheckpointError:
        return False


def verified(path: Path) -> dict[str, Any]:
    """The state of a folder all of whose files are as they were written. Raises CheckpointError."""
    state = read_state(path / STATE)
    for name, said in state["files"].items():
        size, digest = measured(path / name)
        if size != said["size"]:
            raise CheckpointError(
                f"{path / name} has {size} bytes, and had {said['size']} when it was written; take another "
                "checkpoint"
            )
        if digest != said["sha256"]:
            raise CheckpointError(
                f"{path / name} is damaged: its SHA-256 is {digest[:12]}…, and was {said['sha256'][:12]}… "
                "when it was written; take another checkpoint"
            )
    return state


def read_state(path: Path) -> dict[str, Any]:
    """A state.json that is as it was written. Raises CheckpointError."""
    with reading(path):
        data = path.read_bytes()
    try:
        state = json.loads(data)
        form, own = state["format"], state.pop("sha256")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not the state of a checkpoint ({error!r}); take another checkpoint"
        ) from error
    if form != FORMAT:
        raise CheckpointError(
            f"{path} is of format {shown(form)}, not {FORMAT!r}; load it with what wrote it"
        )
    if own != own_hash(state) or not all(GROUP.fullmatch(n.removesuffix(WEIGHTS)) for n in state["files"]):
        raise CheckpointError(f"{path} is damaged: it is not as it was written; take another checkpoint")
    return dict(state)


def own_hash(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def measured(path: Path) -> tuple[int, str]:
    """The size and SHA-256 of a file. Raises CheckpointError."""
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
        return file.tell(), digest.hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within the block the system's complaints become a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; take another checkpoint") from error
