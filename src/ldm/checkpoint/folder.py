"""The files of a diffusers folder: which belong to a component, in whatever variant and number of shards."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ldm.checkpoint.files import Entry, File
from ldm.clip.tokenizer import Tokenizer, pair_of
from ldm.errors import CheckpointError

# The stem of the weights of each kind of component.
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass(frozen=True)
class Store:
    """The tensors of one component, from one file or from several shards."""

    files: tuple[File, ...]

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every tensor by name."""
        return {name: entry for file in self.files for name, entry in file.entries.items()}

    def file_of(self, name: str) -> File:
        """The shard that holds a tensor."""
        return next(file for file in self.files if name in file.entries)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; download the folder again") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must be a JSON object, not {type(value).__name__}")
    return value


def open_component(folder: Path, variant: str | None = None) -> Store:
    """The weights in a component's folder.

    variant  "fp16" for `….fp16.safetensors`; None takes the plain files, or the only variant there is.
    Raises CheckpointError where nothing, or more than one thing, fits.
    """
    stem = STEMS[folder.name]
    found = variants(folder, stem)
    if not found:
        hint = (
            " (there are only .bin pickles, which are never executed)" if list(folder.glob("*.bin")) else ""
        )
        raise CheckpointError(f"{folder} has no {stem}*.safetensors{hint}; download the safetensors files")
    wanted = variant or ""
    if wanted not in found and (variant or len(found) > 1):
        names = ", ".join(repr(name) for name in found)
        raise CheckpointError(f"{folder} has the variants {names}; say which with variant=…")
    paths = found[wanted] if wanted in found else next(iter(found.values()))
    files = tuple(File.open(path) for path in paths)
    seen: dict[str, Path] = {}
    for file in files:
        for name in file.entries:
            if name in seen:
                raise CheckpointError(
                    f"{name} is in {seen[name]} and in {file.path}; remove the shard that is stale"
                )
            seen[name] = file.path
    return Store(files)


def open_tokenizer(folder: Path, length: int, pad: str) -> Tokenizer:
    """The tokenizer of a folder: `vocab.json` and `merges.txt`, or what `tokenizer.json` has of them."""
    special = folder / "special_tokens_map.json"
    said = read_json(special).get("pad_token", pad) if special.is_file() else pad
    pad = str(said["content"] if isinstance(said, dict) and "content" in said else said)
    if (folder / "vocab.json").is_file() or not (folder / "tokenizer.json").is_file():
        return Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt", length=length, pad=pad)
    model = read_json(folder / "tokenizer.json").get("model", {})
    try:
        merges = [pair_of(pair) if isinstance(pair, str) else (pair[0], pair[1]) for pair in model["merges"]]
        return Tokenizer(dict(model["vocab"]), merges, length=length, pad=pad)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} is not a byte-pair tokenizer: {error!r}"
        ) from error


def variants(folder: Path, stem: str) -> dict[str, list[Path]]:
    """Variant ("" for plain) -> its files: one, or the shards that its index names."""
    out: dict[str, list[Path]] = {}
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing; download the folder again")
    for path in sorted(folder.iterdir()):
        single = re.fullmatch(rf"{stem}(?:\.([\w-]+?))?\.safetensors", path.name)
        index = re.fullmatch(rf"{stem}\.safetensors\.index(?:\.([\w-]+))?\.json", path.name)
        if index:
            out[index[1] or ""] = shards(path)
        elif single and not re.search(r"-\d{5}-of-\d{5}", path.name):
            out.setdefault(single[1] or "", [path])
    return out


def shards(index: Path) -> list[Path]:
    """The files an index names. Raises CheckpointError if one is missing or lacks what it should hold."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor: file; download it again")
    paths = [index.parent / Path(name).name for name in sorted(set(where.values()))]
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, but {index.name} names it; download it")
    held = {path.name: set(File.open(path).entries) for path in paths}
    for name, file in where.items():
        if name not in held[Path(file).name]:
            raise CheckpointError(
                f"{name} is missing from {index.parent / file}, where {index.name} places it"
            )
    return paths
