"""The files of a diffusers folder: which belong to a component, in whatever variant and number of shards."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ldm.checkpoint.fields import wrong
from ldm.checkpoint.files import File
from ldm.checkpoint.header import Entry
from ldm.clip import Tokenizer, WordPiece
from ldm.clip.config import BERTConfig
from ldm.clip.tokenizer import pair_of
from ldm.errors import CheckpointError
from ldm.family import Text

# The stem of the weights of each kind of component.
STEMS = {
    **dict.fromkeys(("unet", "vae", "vqvae"), "diffusion_pytorch_model"),
    **dict.fromkeys(("text_encoder", "text_encoder_2", "bert"), "model"),
}

SIDE = "ldm_single_file.safetensors"  # beside model_index.json: what a single file had and a folder has not


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
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}; download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must be a JSON object, not {type(value).__name__}")
    return value


def open_component(folder: Path, variant: str | None = None, kind: str | None = None) -> Store:
    """The weights in a component's folder.

    kind     "unet", "vae", "text_encoder" …; None: as the folder is called
    variant  "fp16" for `….fp16.safetensors`; None takes the plain files, or the only variant there is.
    Raises CheckpointError where nothing, or more than one thing, fits.
    """
    stem = STEMS[kind or folder.name]
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


def open_side(folder: Path) -> File:
    """What the single file had that became this folder, by its names there; nothing if there was none."""
    path = folder / SIDE
    return File.open(path) if path.is_file() else File(path, {}, {})


def tokenizer_folder(text: Text) -> str:
    """The folder of a text encoder's tokenizer."""
    return text.name.replace("text_encoder", "tokenizer").replace("bert", "tokenizer")


def open_tokenizer(folder: Path, text: Text) -> Tokenizer | WordPiece:
    """A tokenizer: of `vocab.txt`; of `vocab.json` and `merges.txt`, or what `tokenizer.json` has of them."""
    length = text.length
    if isinstance(text.config, BERTConfig):
        return WordPiece.from_file(folder / "vocab.txt", length=length)
    pad = pad_of(folder, text.pad)
    if (folder / "vocab.json").is_file() or not (folder / "tokenizer.json").is_file():
        found = Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt", length=length, pad=pad)
        refuse_added(folder / "added_tokens.json", found)
        return found
    path = folder / "tokenizer.json"
    model = read_json(path).get("model", {})
    try:
        merges = [pair_of(pair) if isinstance(pair, str) else (pair[0], pair[1]) for pair in model["merges"]]
        found = Tokenizer(dict(model["vocab"]), merges, length=length, pad=pad)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path} is not a byte-pair tokenizer ({error!r}); get vocab.json and merges.txt of the model"
        ) from error
    refuse_added(folder / "added_tokens.json", found)
    return found


def pad_of(folder: Path, default: str) -> str:
    """The piece that fills up, as either of two files says; where official ones differ, the first decides."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = read_json(folder / name) if (folder / name).is_file() else {}
        value = config.get("pad_token")
        piece = value.get("content") if isinstance(value, dict) else value
        if "pad_token" in config and not isinstance(piece, str):
            raise wrong(str(folder / name), "pad_token", f"a piece such as {default!r}", value)
        if piece is not None:
            return str(piece)
    return default


def refuse_added(path: Path, tokenizer: Tokenizer) -> None:
    """Raises CheckpointError for tokens added to a vocabulary, which would change what prompts mean."""
    for piece, i in (read_json(path) if path.is_file() else {}).items():
        if tokenizer.vocab.get(piece) != i:
            raise CheckpointError(
                f"{path} adds {piece!r}, and added tokens are not supported; use the model without them"
            )


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
