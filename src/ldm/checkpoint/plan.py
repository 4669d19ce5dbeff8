"""What a source is and where each tensor of each network lies in it, decided from headers alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from ldm.checkpoint import configs, diffusers, original, settings, sizes
from ldm.checkpoint.detect import Finding, detect
from ldm.checkpoint.evidence import Shapes
from ldm.checkpoint.files import File
from ldm.checkpoint.folder import Store, open_component, open_tokenizer, read_json
from ldm.checkpoint.paths import source_path
from ldm.checkpoint.report import Part, Report, compare, dtypes_in, shapes_in
from ldm.checkpoint.table import Rule, table
from ldm.clip import TextEncoder, Tokenizer
from ldm.errors import CheckpointError, InputError
from ldm.families import FAMILIES, Family
from ldm.families import family as family_named
from ldm.pipeline import Dialect
from ldm.unet import UNet
from ldm.vae import VAE

NETWORKS: dict[str, Callable[[Family], nn.Module]] = {
    "unet": lambda family: UNet(family.unet),
    "vae": lambda family: VAE(family.vae),
    "text_encoder": lambda family: TextEncoder(family.text),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How to load a source."""

    report: Report
    family: Family
    parts: tuple[Part, ...]
    tokenizer: Callable[[], Tokenizer]
    metadata: dict[str, str]
    dialect: Dialect


def make_plan(source: Path, family: str | None = None, variant: str | None = None) -> Plan:
    """Read a source's headers. Raises CheckpointError for what is no model of a family known here."""
    if family is not None:
        family_named(family)
    if source.is_dir():
        return folder_plan(source, family, variant)
    if variant is not None:
        raise InputError(f"variant {variant!r} is for folders, and {source} is a file")
    return file_plan(source, family)


def inspect(source: str | Path) -> Report:
    """What a file or folder is, from its headers alone. Raises CheckpointError for what cannot be read."""
    path = source_path(source)
    if not path.is_dir():
        file = File.open(path)
        found = detect(shapes_in(file.entries))
        if found.family is None or (found.family not in FAMILIES and settings.KEY not in file.metadata):
            dtypes = dtypes_in(file.entries.values())
            return Report(str(path), found.family, "original", None, dtypes=dtypes, reasons=found.reasons)
    return make_plan(path).report


def file_plan(path: Path, name: str | None) -> Plan:
    """The plan of an official single file."""
    file = File.open(path)
    shapes = shapes_in(file.entries)
    prefix = original.text_prefix(shapes)
    family, reasons = file_family(file, shapes, name, prefix)
    check_sizes(path, family)
    rules = {
        "unet": original.unet_rules(family.unet),
        "vae": original.vae_rules(family.vae),
        "text_encoder": original.text_rules(prefix),
    }
    store = Store((file,))
    parts = tuple(part(name, family, rules[name], store) for name in NETWORKS)
    report = compare(path, "original", family, parts, original.IGNORED, reasons)
    check_hearing(report, family)

    def tokenizer() -> Tokenizer:
        if settings.TOKENIZER in file.metadata:
            return settings.tokenizer_from_json(file.metadata[settings.TOKENIZER], str(path), family)
        return Tokenizer.openai(length=family.text.length, pad=family.pad)

    return Plan(report, family, parts, tokenizer, file.metadata, Dialect(prefix))


def file_family(file: File, shapes: Shapes, asked: str | None, prefix: str) -> tuple[Family, list[str]]:
    """The family of a single file and why: what was asked for, or the file says, or it shows."""
    found = detect(shapes)
    if asked is None and found.family and settings.KEY in file.metadata:
        family = settings.from_json(file.metadata[settings.KEY], str(file.path))
        return family, [f"the metadata {settings.KEY} says {family.name}", *found.reasons]
    chosen, reasons = choose_family(file.path, asked, found)
    return sizes.family(shapes, family_named(chosen), prefix), reasons


def folder_plan(folder: Path, name: str | None, variant: str | None) -> Plan:
    """The plan of a diffusers folder."""
    index = read_json(folder / "model_index.json")
    unet = read_json(folder / "unet" / "config.json")
    chosen, reasons = choose_family(folder, name, at(folder, lambda: diffusers.detect(index, unet)))
    stores = {part: open_component(folder / part, variant) for part in NETWORKS}
    shapes = {part: shapes_in(store.entries) for part, store in stores.items()}
    said = {part: read_json(folder / part / "config.json") for part in NETWORKS}
    said["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    prefix = "text_model." if any(key.startswith("text_model.") for key in shapes["text_encoder"]) else ""
    family = at(folder, lambda: configs.apply(diffusers.family(shapes, family_named(chosen), prefix), said))
    check_sizes(folder, family)
    dialect = Dialect(prefix, old_vae_attention=any(".query." in key for key in shapes["vae"]))
    rules = {
        "unet": diffusers.unet_rules(family.unet),
        "vae": diffusers.vae_rules(
            diffusers.OLD_ATTENTION if dialect.old_vae_attention else diffusers.NEW_ATTENTION
        ),
        "text_encoder": diffusers.text_rules(prefix),
    }
    parts = tuple(part(name, family, rules[name], stores[name]) for name in NETWORKS)
    report = compare(folder, "diffusers", family, parts, diffusers.IGNORED, reasons)
    check_hearing(report, family)
    if not report.problems:
        at(folder, lambda: configs.agree(family, said))

    def tokenizer() -> Tokenizer:
        return open_tokenizer(folder / "tokenizer", family.text.length, family.pad)

    return Plan(report, family, parts, tokenizer, {}, dialect)


def part(name: str, family: Family, rules: list[Rule], store: Store) -> Part:
    """The network of a name, without weights, and where its tensors are."""
    with torch.device("meta"):
        model = NETWORKS[name](family)
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


def at(source: Path, read: Callable[[], T]) -> T:
    """What `read` gives, with the source named in its errors."""
    try:
        return read()
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def check_sizes(source: Path, family: Family) -> None:
    """Raises CheckpointError for sizes of which no network can be built."""
    unet, vae, text = family.unet, family.vae, family.text
    splits = [("UNet", width, unet.groups, "groups") for width in unet.channels]
    splits += [
        ("UNet", w, unet.heads or unet.head_dim or 1, "heads")
        for w, depth in zip(unet.channels, unet.depth, strict=True)
        if depth
    ]
    splits += [("autoencoder", width, vae.groups, "groups") for width in vae.channels]
    splits += [("text encoder", text.width, text.heads, "heads")]
    for network, width, pieces, what in splits:
        if not width or width % pieces:
            raise CheckpointError(
                f"{source}: {width} channels of the {network} cannot be split into {pieces} {what}; "
                "correct its config, or get the model again"
            )
    if not (unet.res_blocks and vae.res_blocks and text.layers and unet.mid_depth):
        raise CheckpointError(
            f"{source}: a network has no blocks at all; the file is not complete, get it again"
        )


def check_hearing(report: Report, family: Family) -> None:
    """Raises CheckpointError where two networks, both of them complete, do not fit together."""
    hears, says = family.unet.context_dim, family.text.width
    if hears != says and not report.problems:
        raise CheckpointError(
            f"{report.source}: the UNet hears tokens {hears} wide, but the text encoder's are {says}; "
            "get both from one model"
        )
