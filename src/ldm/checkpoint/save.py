"""From a model to a file or folder, which is there completely or not at all."""

import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint import diffusers, modelspec, original, settings, sizes, tables, written
from ldm.checkpoint.averages import average_names
from ldm.checkpoint.detect import detect
from ldm.checkpoint.files import replacing, sync_folder, write
from ldm.checkpoint.folder import SIDE, STEMS, tokenizer_folder
from ldm.checkpoint.paths import target_path
from ldm.checkpoint.table import Rule, assemble, table
from ldm.checkpoint.values import narrowed
from ldm.clip import Tokenizer, WordPiece
from ldm.clip.embedding import ADDED
from ldm.devices import check_dtype
from ldm.errors import CheckpointError, InputError
from ldm.families import FAMILIES
from ldm.family import Family
from ldm.model import Dialect, Model, Origin

log = logging.getLogger("ldm")
LAYOUTS = ("original", "diffusers")
PLAIN = r"(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"  # ends of the names of weights of no variant


def save(pipe: Model, path: str | Path, layout: str | None = None, dtype: torch.dtype | None = None) -> None:
    """Write a pipeline's model. Saving over the file it was loaded from is safe.

    LoRAs are part of it; added tokens are not, and the logger "ldm" says which.
    path    a link is followed: what it leads to is written
    layout  "original", one safetensors file; "diffusers", a folder; None: a file where the path ends in
            .safetensors, else the layout of the source, else a file
    dtype   of the weights; None gives each tensor the dtype it had in its file, so that saving what was
            loaded gives back every tensor bit for bit, unless it would then lose something
    Raises InputError; CheckpointError, with nothing changed, if it cannot be written.
    """
    if not isinstance(pipe, Model):
        raise InputError(f"pipe must be a Pipeline, not {type(pipe).__name__}: call ldm.save(pipe, path)")
    pipe.need_weights("saving")
    target = target_path(path)
    one_file = Path(path).suffix == ".safetensors"
    if layout is None:
        layout = "original" if one_file else pipe.origin.layout or "original"
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    if layout == "diffusers" and one_file:
        raise InputError(f"layout 'diffusers' is a folder, and {path} ends in .safetensors; leave that off")
    dtype = None if dtype is None else check_dtype(dtype)
    if added := sorted({token for tokenizer in pipe.tokenizers for token in tokenizer.added}):
        log.warning("%s is saved without %s, which have files of their own", target, ", ".join(added))
    (save_file if layout == "original" else save_folder)(pipe, target, dtype)


def save_file(pipe: Model, path: Path, dtype: torch.dtype | None) -> None:
    """The official single-file layout."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a .safetensors file")
    family, origin = pipe.family, pipe.origin
    same = origin.layout == "original"
    tensors = dict(origin.extras if same else origin.aside or tables.extras(family))
    prefixes = (same and origin.dialect.text_prefixes) or original.prefixes(family)
    rules = original.rules(family, prefixes)
    for name, network in pipe.named_networks().items():
        made = renamed(name, network, rules[name], origin, dtype)
        if name == "unet" and same and origin.averaged:
            names = average_names(made)
            made = {names[key]: tensor for key, tensor in made.items()}
        tensors |= made
    write(path, tensors, metadata(pipe, tensors))


def metadata(pipe: Model, tensors: dict[str, Tensor]) -> dict[str, str]:
    """The texts of a single file: the source's, and what its tensors could not tell a reader."""
    described = modelspec.describe(pipe.family) if pipe.origin.layout != "original" else {}
    texts = {"format": "pt"} | described | pipe.origin.metadata
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if not told_by(shapes, pipe.family):
        texts[settings.KEY] = settings.to_json(pipe.family)
    for tokenizer in pipe.tokenizers[:1]:
        if isinstance(tokenizer, Tokenizer) and tokenizer.merges != Tokenizer.openai().merges:
            texts[settings.TOKENIZER] = settings.tokenizer_to_json(tokenizer)
    return texts


def told_by(shapes: dict[str, tuple[int, ...]], family: Family) -> bool:
    """Whether a reader of these shapes alone would arrive at the family."""
    found = detect(shapes).family
    if found not in FAMILIES:
        return False
    preset = FAMILIES[found]
    return sizes.family(shapes, preset, original.text_prefixes(shapes, preset)) == family


def save_folder(pipe: Model, path: Path, dtype: torch.dtype | None) -> None:
    """The folder layout of diffusers."""
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the name of a folder")
    family, origin = pipe.family, pipe.origin
    same = origin.layout == "diffusers"
    dialect = origin.dialect if same else Dialect()
    prefixes = dialect.text_prefixes or ("text_model.",) * len(family.texts)
    rules = diffusers.rules(family, prefixes, dialect.old_attention)
    with replacing_folder(path) as new:
        for name, config in written.write(family).items():
            write_text(new / name, json.dumps(config, indent=2, sort_keys=True) + "\n")
        for text, tokenizer in zip(family.texts, pipe.tokenizers, strict=False):
            write_tokenizer(new / tokenizer_folder(text), tokenizer)
        aside = dict(origin.aside if same else origin.extras)
        for name, network in pipe.named_networks().items():
            tensors = renamed(name, network, rules[name], origin, dtype)
            aside |= taken_out(tensors, pipe, name, rules[name])
            if same:
                own = (key for key in origin.extras if key.startswith(f"{name}/"))
                tensors |= {key.removeprefix(f"{name}/"): origin.extras[key] for key in own}
            where = diffusers.folder_of(family, name)
            write(new / where / f"{STEMS[where]}.safetensors", tensors, {"format": "pt"})
        if aside:
            write(new / SIDE, aside, {"format": "pt"})


def taken_out(tensors: dict[str, Tensor], pipe: Model, name: str, rules: list[Rule]) -> dict[str, Tensor]:
    """Take the last layers of a text encoder out of a folder's tensors; by their official names."""
    texts = zip(pipe.family.texts, original.prefixes(pipe.family), pipe.text_encoders, strict=True)
    for text, prefix, encoder in texts:
        if text.name == name:
            _, last = diffusers.kept(text.config, own_state(encoder))
            theirs = table(last, rules)
            state = {key: tensors.pop(source.key) for key, source in theirs.items()}
            return assemble(state, table(last, original.prompt_rules(text.config, prefix)))
    return {}


def renamed(
    name: str, network: nn.Module, rules: list[Rule], origin: Origin, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """A network's tensors under a layout's names, in its forms and in the dtype to write.

    Raises CheckpointError for a value beyond that dtype.
    """
    state = own_state(network)
    sources = table(state, rules)
    for ours, tensor in state.items():
        was = origin.dtypes.get(f"{name}/{ours}", tensor.dtype)
        state[ours] = narrowed(tensor, dtype, sources[ours].key) if dtype else back(tensor, was)
    return assemble(state, sources)


def own_state(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors without those of added tokens, which no file of a model has."""
    return {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(ADDED)}


def back(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the dtype its file had, where that loses nothing."""
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def write_text(path: Path, text: str) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_tokenizer(folder: Path, tokenizer: Tokenizer | WordPiece) -> None:
    """`vocab.json` and `merges.txt`, or of words `vocab.txt`."""
    if isinstance(tokenizer, WordPiece):
        write_text(folder / "vocab.txt", "".join(f"{piece}\n" for piece in tokenizer.vocab))
        return
    write_text(folder / "vocab.json", json.dumps(tokenizer.vocab, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in tokenizer.merges)]
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of `path` when it is complete; files that we do not write are kept.

    Weights that the new ones replace go. Other weights of the old networks, such as a variant (….fp16), are
    the user's, so they are not deleted, and belong to the old model, so they may not stay: CheckpointError.
    """
    check_replaceable(path)
    mark = secrets.token_hex(4)
    new, old = path.with_name(f".{path.name}.{mark}.tmp"), path.with_name(f".{path.name}.{mark}.old")
    try:
        new.mkdir()
        yield new
        if path.is_dir():
            keep_others(path, new)
            path.rename(old)
        new.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror or error}; nothing was changed"
        ) from error
    finally:
        if old.is_dir() and not path.exists():
            old.rename(path)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_replaceable(path: Path) -> None:
    """Raises CheckpointError for a folder that no model may take the place of; see `replacing_folder`."""
    if path.is_dir() and any(path.iterdir()) and not (path / "model_index.json").is_file():
        raise CheckpointError(f"{path} is a folder with other things in it; give a new one")
    if stale := [file for file, replaced in weights_in(path).items() if not replaced]:
        raise CheckpointError(
            f"{stale[0]} would stay beside the new weights, though it is of the old model; "
            "remove it, or give a new folder"
        )


def keep_others(old: Path, new: Path) -> None:
    """Copy what the new folder lacks, but not the weights it replaces."""
    replaced = weights_in(old)
    for source in old.rglob("*"):
        target = new / source.relative_to(old)
        if source.is_file() and not target.exists() and source not in replaced:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def weights_in(folder: Path) -> dict[Path, bool]:
    """The files of weights of a folder's networks, and whether what we write replaces each."""
    files = [file for name in STEMS for file in sorted(folder.glob(f"{name}/*"))]
    return {
        file: bool(re.fullmatch(rf"{STEMS[file.parent.name]}{PLAIN}", file.name))
        for file in files
        if re.search(r"\.(safetensors|bin)\b", file.name)
    }
