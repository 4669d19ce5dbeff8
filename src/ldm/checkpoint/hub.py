"""Models by their names on a hub: `org/name`, a folder, or `org/name/file.safetensors`, one file of it.

Only here is a network touched, by huggingface_hub (extra `hub`), and only for what its cache has not.
"""

import re
from pathlib import Path
from typing import Any

from ldm.checkpoint.folder import STEMS, read_json
from ldm.errors import CheckpointError, InputError

NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+\.(?:safetensors|ckpt)))?")
WANTED = ["model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"]


def is_name(source: str | Path) -> bool:
    """Whether a source that is no file or folder here may be a name on a hub."""
    return isinstance(source, str) and NAME.fullmatch(source) is not None and not source.startswith(".")


def fetch(name: str, revision: str | None = None, variant: str | None = None) -> Path:
    """The file or folder of a name in the cache, downloaded if it is not there.

    revision  a branch, tag or commit; None: the main branch
    variant   of a folder's weights, such as "fp16"; None: the plain ones alone
    Raises InputError without the extra; CheckpointError for what cannot be had.
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        raise InputError(
            f"{name} is no file or folder here, and to look for it on the hub needs the extra: "
            "pip install 'ldm[hub]'"
        ) from None
    match = NAME.fullmatch(name)
    assert match is not None
    repo, file = match.groups()
    if file:
        return got(name, hub.hf_hub_download, repo, file, revision=revision)
    own = [f"*/*.{variant}.*", f"*/*.{variant}-*"] if variant else []
    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": [*WANTED[:3], *own] if variant else WANTED,
        "ignore_patterns": None if variant else ["*/*.*.safetensors", "*/*.safetensors.index.*.json"],
    }
    folder = got(name, hub.snapshot_download, repo, **options)
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{name} on the hub is no folder of diffusers; name its file: {name}/<file>.safetensors"
        )
    return folder


def got(name: str, download: Any, *what: str, **options: Any) -> Path:
    """What the cache has, if that is all of it, or else the hub. Raises CheckpointError."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(download(*what, local_files_only=True, **options))
        if whole(cached):
            return cached
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # then the hub is asked, and its answer counts
    try:
        return Path(download(*what, **options))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name} is no file or folder here and not in the hub's cache, and the hub cannot be reached; "
            "download it where there is a network"
        ) from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{name} cannot be had from the hub ({reason}); check the name") from error


def whole(cached: Path) -> bool:
    """Whether all of a model is there: a download that broke off leaves a folder without some weights."""
    if cached.is_file():
        return True
    if not (cached / "model_index.json").is_file():
        return False
    parts = [part for part in STEMS if read_json(cached / "model_index.json").get(part, [None])[0]]
    return all((cached / part / "config.json").is_file() and full(cached / part) for part in parts)


def full(folder: Path) -> bool:
    """Whether a part has weights, and of shards every one."""
    indexes = list(folder.glob("*.index*.json"))
    named = {file for index in indexes for file in read_json(index).get("weight_map", {}).values()}
    return any(folder.glob("*.safetensors")) and all((folder / file).is_file() for file in named)
