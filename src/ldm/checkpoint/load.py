"""From a source to a Model: networks built without weights, then given the file's own."""

import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.detect import GUESSES
from ldm.checkpoint.files import File
from ldm.checkpoint.paths import source_path
from ldm.checkpoint.plan import make_plan
from ldm.checkpoint.report import Part
from ldm.checkpoint.table import Source
from ldm.checkpoint.values import check_file, narrowed
from ldm.clip import Tokenizer, WordPiece
from ldm.clip.config import ClassConfig
from ldm.devices import check_dtype, find_device
from ldm.errors import CheckpointError
from ldm.family import Family
from ldm.model import Model, Origin, fitting


def load_model(
    source: str | Path | None,
    *,
    family: str | None,
    dtype: torch.dtype,
    device: torch.device | str,
    variant: str | None,
    copy: bool,
    ema: bool | None,
    revision: str | None,
) -> Model:
    """A model from a file or folder, or the one in this package; `ldm.load` says what the arguments are."""
    path = bundled() if source is None else source_path(source, revision, variant)
    check_dtype(dtype)
    target = find_device(device)
    plan = make_plan(path, family, variant, ema=ema, numbers=True)
    if plan.report.problems:
        raise CheckpointError(
            f"{path} cannot be loaded as {plan.family.name}: {plan.report.problems}; "
            "get the whole file again, or pass family=… if it is of another family"
        )
    for guess in set(GUESSES.values()) & set(plan.report.reasons):
        warnings.warn(f"{path}: {guess}", stacklevel=3)
    dtypes = {part.name: fitting(plan.family, part.name, dtype) for part in plan.parts}
    models = {part.name: fill(part, dtypes[part.name], target, copy=copy) for part in plan.parts}
    tokenizers = plan.tokenizers()
    check_tokenizers(path, plan.family, tokenizers)
    origin = Origin(
        layout=plan.report.layout,
        dtypes={f"{part.name}/{ours}": dtype for part in plan.parts for ours, dtype in part.dtypes().items()},
        extras={key: extra(plan.parts, key, copy=copy) for key in plan.report.ignored},
        aside={key: file.read(key) if copy else file.view(key) for key, file in plan.aside.items()},
        metadata=plan.metadata,
        dialect=plan.dialect,
        averaged=any(source.key.startswith("model_ema.") for source in plan.parts[0].table.values()),
    )
    encoders = [models[text.name] for text in plan.family.texts]
    return Model(plan.family, models["unet"], models["vae"], encoders, tokenizers, origin)


def check_tokenizers(path: Path, family: Family, tokenizers: Sequence[Tokenizer | WordPiece]) -> None:
    """Raises CheckpointError for a tokenizer that knows more pieces than its text encoder."""
    for text, tokenizer in zip(family.texts, tokenizers, strict=False):
        if not isinstance(text.config, ClassConfig) and len(tokenizer) > text.config.vocab:
            raise CheckpointError(
                f"{path}: the tokenizer has {len(tokenizer)} pieces, "
                f"but the text encoder's token embedding has {text.config.vocab} rows; "
                "get both from one model"
            )


def bundled() -> Path:
    """The folder of the model in this package."""
    return Path(str(resources.files("ldm").joinpath("bundled")))


def fill(part: Part, dtype: torch.dtype, device: torch.device, *, copy: bool) -> Any:
    """A part's network with the weights of its files, for evaluation."""
    for file in part.store.files:
        check_file(file, {source.key for source in part.table.values() if source.key in file.entries})
    state = {}
    for ours, source in part.table.items():
        file = part.store.file_of(source.key)
        state[ours] = tensor(file, source, dtype, copy=copy).to(device)
    part.model.load_state_dict(state, strict=True, assign=True)
    return part.model.eval().requires_grad_(False)


def tensor(file: File, source: Source, dtype: torch.dtype, *, copy: bool) -> Tensor:
    """Our tensor in a dtype, mapped if the file has that. Raises CheckpointError for what is beyond it."""
    key, form = source
    if file.entries[key].dtype == dtype:
        return form.load(file.read(key) if copy else file.view(key))
    out = narrowed(form.load(file.view(key)), dtype, f"{file.path}: {key}")
    file.forget(key)  # so that never more than one tensor is held twice
    return out


def extra(parts: tuple[Part, ...], name: str, *, copy: bool) -> Tensor:
    """A tensor that no network uses, kept to be saved again."""
    for part in parts:
        key = name.removeprefix(f"{part.name}/")
        if key in part.store.entries:
            file = part.store.file_of(key)
            return file.read(key) if copy else file.view(key)
    raise CheckpointError(f"{name} is in no file")
