"""Where models are read and written, from what a caller gave as a path."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as brief

from ldm.checkpoint.hub import fetch, is_name
from ldm.errors import CheckpointError, InputError


def source_path(source: str | Path, revision: str | None = None, variant: str | None = None) -> Path:
    """A file or folder that is there, or that a hub has. Raises InputError; CheckpointError if it is not."""
    with usable("source", source):
        path = Path(source).expanduser()
        there = path.exists()
    if there and revision is None:
        return path
    if there:
        raise InputError(f"revision is for names on a hub, and {path} is here; leave it out")
    if is_name(source) and (revision is not None or not path.parent.is_dir()):
        return fetch(str(source), revision, variant)
    raise CheckpointError(
        f"{path} does not exist; give a .safetensors file or a folder with model_index.json"
    )


def target_path(path: str | Path) -> Path:
    """A place in a folder that is there; links are followed, so that what they lead to is written.

    Raises InputError; CheckpointError.
    """
    with usable("path", path):
        target = Path(path).expanduser().resolve()
        there = target.parent.is_dir()
        target.exists()  # complains about what can be no name
    if not there:
        raise CheckpointError(f"{target.parent} is not a folder; make it first")
    return target


@contextmanager
def usable(argument: str, path: str | Path) -> Iterator[None]:
    """Within the block the system's complaints about a path become errors that name it."""
    if not isinstance(path, (str, Path)):
        raise InputError(f"{argument} must be a str or a Path, not {type(path).__name__}")
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{brief(str(path))} cannot be used as a path ({reason}); correct it"
        ) from error
