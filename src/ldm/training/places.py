"""Where the checkpoints of a run lie, and how one comes to its place and goes.

    step-00001234             a checkpoint
    .step-00001234.MARK.tmp   one that is being written, or removed: rubbish, if nobody is at it
    .step-00001234.MARK.old   one that is being replaced: a checkpoint, while nothing is in its place

Folders are only ever renamed, so each is under one of these names whole.
"""

import errno
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.checkpoint.files import sync_folder
from ldm.checkpoint.paths import usable
from ldm.errors import CheckpointError, InputError

log = logging.getLogger("ldm")

PLACE = re.compile(r"step-(\d{8,})")
HIDDEN = re.compile(r"\.(step-\d{8,})\.[0-9a-f]{8}\.(tmp|old)")
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files",
}


def listed(folder: str | Path) -> list[Path]:
    """The folders of all checkpoints of a run, whole or not, newest first; none if the folder is not there.

    Raises InputError if it cannot be read.
    """
    folder = absolute("folder", folder)
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}; give the folder of a run") from error
    names = {path.name for path in paths}
    found = [path for path in paths if PLACE.fullmatch(path.name) or is_set_aside(path.name, names)]
    return sorted(found, key=step_of, reverse=True)


def is_set_aside(name: str, names: set[str]) -> bool:
    """Whether a run was killed after it had moved this checkpoint aside and before the new one was there."""
    hit = HIDDEN.fullmatch(name)
    return hit is not None and hit[2] == "old" and hit[1] not in names


def absolute(argument: str, path: str | Path) -> Path:
    """Raises InputError; CheckpointError for what can be no path."""
    with usable(argument, path):
        return Path(path).expanduser().resolve()


def place_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    hit = PLACE.search(path.name)
    assert hit, path
    return int(hit[1])


def beside(path: Path, end: str) -> Path:
    """A hidden name for what is now, or is to be, at a place."""
    name = place_of(path.parent, step_of(path)).name
    return path.with_name(f".{name}.{secrets.token_hex(4)}.{end}")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within the block the system's complaints become an InputError that names the folder."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        remedy = REMEDIES.get(cause.errno or 0, "give a folder that can be written")
        raise InputError(
            f"{folder} cannot be written: {cause.strerror or cause}; {remedy}; no checkpoint was lost"
        ) from error


def ready(folder: str | Path) -> Path:
    """The folder of a run, made if need be, in which files can be written. Raises InputError."""
    path = absolute("folder", folder)
    with writing(path):
        make(path)
        tempfile.TemporaryFile(dir=path).close()
    return path


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within the block this process alone trains there; the system lets go when it ends, however it ends.

    Raises InputError where another one does. Systems without flock know of no such thing.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder} is where another run is training now; wait for it, or give another folder"
            ) from error
        except OSError as error:  # some network's file systems
            log.warning("%s cannot be kept to one run: %s; begin no other there", folder, error)
        yield
    finally:
        os.close(handle)


def make(folder: Path) -> None:
    """A folder, and those it is in, with names that last. Raises InputError if one is a file."""
    if folder.is_dir():
        return
    if folder.exists():
        raise InputError(f"{folder} is a file; give a folder for the checkpoints of a run")
    make(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def tidy(folder: Path) -> None:
    """Clean up after a run that was killed."""
    for path in sorted(folder.iterdir()):
        if hit := HIDDEN.fullmatch(path.name):
            if hit[2] == "old" and not (folder / hit[1]).exists():
                path.rename(folder / hit[1])
            else:
                discard(path)


@contextmanager
def filling(place: Path) -> Iterator[Path]:
    """A new folder that comes to its place after the block, where an old one gives way; or is gone."""
    new, old = beside(place, "tmp"), beside(place, "old")
    try:
        new.mkdir()
        yield new
        if place.exists():
            place.rename(old)
        new.rename(place)
        sync_folder(place.parent)
    finally:
        if old.exists() and not place.exists():
            old.rename(place)
        for rest in (new, old):
            if rest.exists():
                discard(rest)


def discard(path: Path) -> None:
    """Remove a folder. Where that fails it is told, and a name remains that no checkpoint has."""
    rubbish = path if path.name.endswith(".tmp") else beside(path, "tmp")
    try:
        if path != rubbish:
            path.rename(rubbish)
        rubbish.unlink() if rubbish.is_symlink() else shutil.rmtree(rubbish)
    except OSError as error:
        log.warning("%s could not be removed: %s; remove it by hand", path, error.strerror or error)
