"""What a source is and where each tensor of each network lies in it, decided from headers alone."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from ldm.checkpoint import configs, diffusers, modelspec, original, pipelines, settings, sizes
from ldm.checkpoint.averages import averaged, with_averages
from ldm.checkpoint.detect import GUESSES, Finding, detect
from ldm.checkpoint.evidence import Shapes
from ldm.checkpoint.fields import at
from ldm.checkpoint.files import File
from ldm.checkpoint.folder import (
    Store,
    open_component,
    open_side,
    open_tokenizer,
    read_json,
    tokenizer_folder,
)
from ldm.checkpoint.paths import source_path
from ldm.checkpoint.report import Part, Report, compare, dtypes_in, shapes_in
from ldm.checkpoint.sound import check_hearing, check_sizes
from ldm.checkpoint.table import Rule, table
from ldm.checkpoint.tables import with_tables
from ldm.clip import BERT, ClassEmbedder, TextEncoder, Tokenizer, WordPiece
from ldm.clip.config import BERTConfig, ClassConfig, CLIPConfig
from ldm.devices import hollow
from ldm.errors import CheckpointError, InputError
from ldm.families import FAMILIES
from ldm.families import family as family_named
from ldm.family import Family, Text
from ldm.model import Dialect
from ldm.unet import UNet
from ldm.vae import VAE

ENCODERS: dict[type, Callable[[Any], nn.Module]] = {
    CLIPConfig: TextEncoder,
    BERTConfig: BERT,
    ClassConfig: ClassEmbedder,
}


@dataclass(frozen=True)
class Plan:
    """How to load a source."""

    report: Report
    family: Family
    parts: tuple[Part, ...]
    tokenizers: Callable[[], list[Tokenizer | WordPiece]]
    metadata: dict[str, str]
    dialect: Dialect
    aside: dict[str, File] = field(default_factory=dict)  # where tensors of a single file lie, for a folder


def networks(family: Family) -> dict[str, Callable[[], nn.Module]]:
    """What builds each network of a family, by its name."""
    texts = {text.name: partial(ENCODERS[type(text.config)], text.config) for text in family.texts}
    return {"unet": partial(UNet, family.unet), "vae": partial(VAE, family.vae), **texts}


def make_plan(
    source: Path,
    family: str | None = None,
    variant: str | None = None,
    *,
    ema: bool | None = None,
    numbers: bool = False,
) -> Plan:
    """Read a source's headers, and if asked the few numbers that a family has from its file.

    Raises CheckpointError for what is no model of a family known here.
    """
    if family is not None:
        family_named(family)
    if source.is_dir():
        if ema:
            raise InputError(f"ema is for single files, and {source} is a folder; leave it out")
        return folder_plan(source, family, variant)
    if variant is not None:
        raise InputError(f"variant {variant!r} is for folders, and {source} is a file")
    file = File.open(source)
    return file_plan(file, detect(shapes_in(file.entries)), family, ema=ema, numbers=numbers)


def inspect(source: str | Path) -> Report:
    """What a file or folder is, from its headers alone. Raises CheckpointError for what cannot be read."""
    path = source_path(source)
    if path.is_dir():
        return folder_plan(path).report
    file = File.open(path)
    found = detect(shapes_in(file.entries))
    if found.family is not None:
        return file_plan(file, found).report
    count = sum(prod(entry.shape) for entry in file.entries.values())
    dtypes = dtypes_in(file.entries.values())
    return Report(str(path), None, "original", None, parameters=count, dtypes=dtypes, reasons=found.reasons)


def file_plan(
    file: File, found: Finding, name: str | None = None, *, ema: bool | None = None, numbers: bool = False
) -> Plan:
    """The plan of an official single file and of what it was found to be."""
    path, shapes = file.path, shapes_in(file.entries)
    family, reasons, decided = file_family(file, shapes, found, name)
    check_sizes(path, family)
    prefixes = original.text_prefixes(shapes, family)
    rules, store = original.rules(family, prefixes), Store((file,))
    parts = tuple(part(name, family, rules[name], store) for name in networks(family))
    ignored: tuple[str, ...] = original.IGNORED
    if with_averages(path, family, shapes, ema):
        unet, *others = parts
        parts = (averaged(unet), *others)
        ignored = (rf"{re.escape(original.UNET)}.*", *ignored)
        reasons = [*reasons, "the UNet's weights are their moving averages, model_ema.*"]
    report = replace(compare(path, "original", family, parts, ignored, reasons), decided=decided)
    check_hearing(report, family)
    if numbers and not report.problems and settings.KEY not in file.metadata:
        family = with_tables(file, family)
        vae: Any = next(part for part in parts if part.name == "vae").model
        vae.config = family.vae

    def tokenizers() -> list[Tokenizer | WordPiece]:
        if settings.TOKENIZER in file.metadata:
            return [settings.tokenizer_from_json(file.metadata[settings.TOKENIZER], str(path), family)]
        return [usual_tokenizer(text) for text in family.texts if not isinstance(text.config, ClassConfig)]

    return Plan(report, family, parts, tokenizers, file.metadata, Dialect(prefixes))


def usual_tokenizer(text: Text) -> Tokenizer | WordPiece:
    """The tokenizer of a text encoder whose file brings none."""
    if isinstance(text.config, BERTConfig):
        return WordPiece.bert(length=text.length)
    return Tokenizer.openai(length=text.length, pad=text.pad)


def file_family(
    file: File, shapes: Shapes, found: Finding, asked: str | None
) -> tuple[Family, list[str], str]:
    """The family of a single file, why it, and why its prediction: asked for, said by the file, or shown."""
    if asked is None and found.family and settings.KEY in file.metadata:
        family = settings.from_json(file.metadata[settings.KEY], str(file.path))
        because = f"the metadata {settings.KEY} says {family.name}"
        return family, [because, *found.reasons], f"the metadata {settings.KEY} says it"
    if asked is not None and found.family is None and any(key.startswith(original.UNET) for key in shapes):
        found = Finding(asked, found.reasons)  # then what is missing of it is named
    chosen, reasons = choose_family(file.path, asked, found)
    decided = f"as every {chosen} does"
    if asked is None and (said := modelspec.decide(chosen, file.metadata)):
        chosen, decided = said
        reasons = [decided, *reasons]
    elif asked is None and chosen in GUESSES:
        reasons = [*reasons, GUESSES[chosen]]
        decided = "a guess" if chosen == "sd2-v" else decided
    if chosen == "ldm-churches256" and "scale_factor" not in shapes:
        reasons = [*reasons, GUESSES["scale_factor"]]
    preset = family_named(chosen)
    return sizes.family(shapes, preset, original.text_prefixes(shapes, preset)), reasons, decided


def folder_plan(folder: Path, name: str | None = None, variant: str | None = None) -> Plan:
    """The plan of a diffusers folder."""
    index, unet = read_json(folder / "model_index.json"), read_json(folder / "unet" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    found = at(folder, lambda: pipelines.detect(index, unet, scheduler))
    chosen, reasons = choose_family(folder, name, found)
    preset = family_named(chosen)
    where = {part: folder / diffusers.folder_of(preset, part) for part in networks(preset)}
    stores = {part: open_component(path, variant) for part, path in where.items()}
    shapes = {part: shapes_in(store.entries) for part, store in stores.items()}
    said = {part: read_json(path / "config.json") for part, path in where.items()} | {"scheduler": scheduler}
    prefixes = {text.name: diffusers.text_prefix(shapes[text.name]) for text in preset.texts}
    side = open_side(folder)
    sized = diffusers.family(shapes, preset, prefixes, shapes_in(side.entries))
    family = at(folder, lambda: configs.apply(sized, said))
    check_sizes(folder, family)
    dialect = Dialect(tuple(prefixes.values()), any(".query." in key for key in shapes["vae"]))
    rules = diffusers.rules(family, dialect.text_prefixes, dialect.old_attention)
    parts = tuple(part(name, family, rules[name], stores[name]) for name in networks(family))
    parts = tuple(with_last_layers(part, family, side) for part in parts)
    decided = "scheduler/scheduler_config.json decides"
    report = compare(folder, "diffusers", family, parts, diffusers.IGNORED, reasons)
    report = replace(report, decided=decided)
    check_hearing(report, family)
    if not report.problems:
        at(folder, lambda: configs.agree(family, said))

    def tokenizers() -> list[Tokenizer | WordPiece]:
        return [open_tokenizer(folder / tokenizer_folder(text), text) for text in family.texts]

    inside = {source.key for part in parts for source in part.table.values()}
    aside = {key: side for key in side.entries if key not in inside}
    return Plan(report, family, parts, tokenizers, {}, dialect, aside)


def with_last_layers(part: Part, family: Family, side: File) -> Part:
    """A text encoder of a folder, whose last layers, which it does without, lie in a file aside."""
    texts = {
        text.name: (text, prefix)
        for text, prefix in zip(family.texts, original.prefixes(family), strict=True)
    }
    if part.name not in texts:
        return part
    text, prefix = texts[part.name]
    _, last = diffusers.kept(text.config, part.table)
    found = table(last, original.prompt_rules(text.config, prefix))
    entries = {
        source.key: side.entries[source.key] for source in found.values() if source.key in side.entries
    }
    store = Store((*part.store.files, replace(side, entries=entries))) if last else part.store
    return replace(part, table=part.table | found, store=store)


def part(name: str, family: Family, rules: list[Rule], store: Store) -> Part:
    """The network of a name, without weights, and where its tensors are."""
    with hollow():
        model = networks(family)[name]()
    return Part(name, model, table(model.state_dict(), rules), store)


def choose_family(source: Path, asked: str | None, found: Finding) -> tuple[str, list[str]]:
    """The name of a family known here. An argument wins, but does not make a model of what is none."""
    because = "; ".join(found.reasons)
    if found.family is None:
        raise CheckpointError(
            f"{source} is not a model that can be loaded ({because}); give the file of a whole model"
        )
    if asked is not None:
        return asked, [f"the argument family={asked!r}", *found.reasons]
    if found.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(
            f"{source} is of the family {found.family} ({because}); this version loads {known}"
        )
    return found.family, found.reasons
