"""From a Pipeline to a file or folder, which is there completely or not at all."""

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint import configs, diffusers, original, settings, sizes
from ldm.checkpoint.files import replacing, sync_folder, write
from ldm.checkpoint.folder import STEMS
from ldm.checkpoint.table import Rule, assemble, table
from ldm.clip import Tokenizer
from ldm.errors import CheckpointError, InputError
from ldm.families import SD1, Family
from ldm.pipeline import Dialect, Origin, Pipeline, check_dtype

LAYOUTS = ("original", "diffusers")


def save(
    pipe: Pipeline, path: str | Path, layout: str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a pipeline's model. Saving over the file it was loaded from is safe.

    layout  "original", one safetensors file; "diffusers", a folder; None: that of the source, else "original"
    dtype   of the weights; None gives each tensor the dtype it had in its file, so that saving what was
            loaded gives back every tensor bit for bit, unless it would then lose something
    Raises InputError; CheckpointError, with nothing changed, if it cannot be written.
    """
    layout = layout or pipe.origin.layout or "original"
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    dtype = None if dtype is None else check_dtype(dtype)
    if not isinstance(path, (str, Path)):
        raise InputError(f"path must be a str or a Path, not {type(path).__name__}")
    path = Path(path).expanduser()
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent} is not a folder; make it first")
    (save_file if layout == "original" else save_folder)(pipe, path, dtype)


def save_file(pipe: Pipeline, path: Path, dtype: torch.dtype | None) -> None:
    """The official single-file layout."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a .safetensors file")
    family, origin = pipe.family, pipe.origin
    same = origin.layout == "original"
    tensors = dict(origin.extras if same else original.extras(family))
    prefix = (same and origin.dialect.text_prefix) or original.TEXT
    networks = {
        "unet": (pipe.unet, original.unet_rules(family.unet)),
        "vae": (pipe.vae, original.vae_rules(family.vae)),
        "text_encoder": (pipe.text_encoders[0], original.text_rules(prefix)),
    }
    for name, (network, rules) in networks.items():
        tensors |= renamed(name, network, rules, origin, dtype)
    write(path, tensors, metadata(pipe, tensors))


def metadata(pipe: Pipeline, tensors: dict[str, Tensor]) -> dict[str, str]:
    """The texts of a single file: the source's, and what its tensors could not tell a reader."""
    texts = {"format": "pt"} | pipe.origin.metadata
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if not told_by(shapes, pipe.family):
        texts[settings.KEY] = settings.to_json(pipe.family)
    if pipe.tokenizers[0].merges != Tokenizer.openai().merges:
        texts[settings.TOKENIZER] = settings.tokenizer_to_json(pipe.tokenizers[0])
    return texts


def told_by(shapes: dict[str, tuple[int, ...]], family: Family) -> bool:
    """Whether a reader of these shapes alone would arrive at the family."""
    prefix = original.TEXT if any(key.startswith(original.TEXT) for key in shapes) else original.OLD_TEXT
    read = sizes.family(shapes, SD1, prefix)
    return read == family


def save_folder(pipe: Pipeline, path: Path, dtype: torch.dtype | None) -> None:
    """The folder layout of diffusers."""
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the name of a folder")
    family, origin = pipe.family, pipe.origin
    same = origin.layout == "diffusers"
    dialect = origin.dialect if same else Dialect()
    attention = diffusers.OLD_ATTENTION if dialect.old_vae_attention else diffusers.NEW_ATTENTION
    prefix = "text_model." if dialect.text_prefix is None else dialect.text_prefix
    networks = {
        "unet": (pipe.unet, diffusers.unet_rules(family.unet)),
        "vae": (pipe.vae, diffusers.vae_rules(attention)),
        "text_encoder": (pipe.text_encoders[0], diffusers.text_rules(prefix)),
    }
    with replacing_folder(path) as new:
        for name, config in configs.write(family).items():
            write_text(new / name, json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_tokenizer(new / "tokenizer", pipe.tokenizers[0])
        for name, (network, rules) in networks.items():
            tensors = renamed(name, network, rules, origin, dtype)
            if same:
                own = (key for key in origin.extras if key.startswith(f"{name}/"))
                tensors |= {key.removeprefix(f"{name}/"): origin.extras[key] for key in own}
            write(new / name / f"{STEMS[name]}.safetensors", tensors, {"format": "pt"})


def renamed(
    name: str, network: nn.Module, rules: list[Rule], origin: Origin, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """A network's tensors under a layout's names, in its forms and in the dtype to write."""
    state = {}
    for ours, tensor in network.state_dict().items():
        was = origin.dtypes.get(f"{name}/{ours}", tensor.dtype)
        state[ours] = tensor.to(dtype) if dtype else back(tensor, was)
    return assemble(state, table(state, rules))


def back(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the dtype its file had, where that loses nothing."""
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def write_text(path: Path, text: str) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """`vocab.json` and `merges.txt`."""
    write_text(folder / "vocab.json", json.dumps(tokenizer.vocab, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in tokenizer.merges)]
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of `path` when it is complete; files that we do not write are kept."""
    mark = secrets.token_hex(4)
    new, old = path.with_name(f".{path.name}.{mark}.tmp"), path.with_name(f".{path.name}.{mark}.old")
    if path.is_dir() and any(path.iterdir()) and not (path / "model_index.json").is_file():
        raise CheckpointError(f"{path} is a folder with other things in it; give a new one")
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


def keep_others(old: Path, new: Path) -> None:
    """Copy what the new folder lacks, but not the weights it supersedes."""
    superseded = {name for stem in STEMS for name in old.glob(f"{stem}/*.safetensors*")}
    for source in old.rglob("*"):
        target = new / source.relative_to(old)
        if source.is_file() and not target.exists() and source not in superseded:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
