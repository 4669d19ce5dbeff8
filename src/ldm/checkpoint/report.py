"""What a look at a model's headers tells."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path

import torch
from torch import nn

from ldm.checkpoint.folder import Store
from ldm.checkpoint.header import NAMES, Entry
from ldm.checkpoint.table import Source
from ldm.family import Family

TITLES = {
    "unet": "UNet",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "bert": "text encoder",
    "class_embedder": "embedding of classes",
}


@dataclass(frozen=True)
class Part:
    """One network of a model: itself on the meta device, and where its tensors are."""

    name: str  # a name in TITLES
    model: nn.Module
    table: dict[str, Source]
    store: Store

    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtype that each of our tensors has in its file."""
        return {ours: self.store.entries[source.key].dtype for ours, source in self.table.items()}


@dataclass(frozen=True)
class Report:
    """What `ldm.inspect` found, without reading any weights."""

    source: str
    family: str | None  # None: not a model that can be loaded
    layout: str  # "original" or "diffusers"
    prediction: str | None  # "eps", "v" or "x0"
    decided: str = ""  # what decided the prediction
    parameters: int = 0  # of all networks
    parts: dict[str, int] = field(default_factory=dict)  # parameters by network
    dtypes: dict[str, int] = field(default_factory=dict)  # how many tensors have each
    ema: int = 0  # moving averages of the UNet's weights
    missing: list[str] = field(default_factory=list)  # tensors a network needs and no file has
    unexpected: list[str] = field(default_factory=list)  # tensors no network knows
    mismatched: list[str] = field(default_factory=list)  # tensors of another shape, each with both shapes
    ignored: list[str] = field(default_factory=list)  # tensors known to be of no use to the networks
    absent: list[str] = field(default_factory=list)  # networks of which there is no tensor at all
    reasons: list[str] = field(default_factory=list)  # why it is taken for what it is

    def __str__(self) -> str:
        lines = [
            f"{self.source}",
            f"  family      {self.family or 'none'} ({'; '.join(self.reasons)})",
            f"  layout      {self.layout}",
            f"  prediction  {self.prediction or 'none'}" + (f" ({self.decided})" if self.decided else ""),
            f"  parameters  {self.parameters:,}"
            + "".join(f"  {name} {n:,}" for name, n in self.parts.items()),
            "  dtypes      " + ", ".join(f"{name} × {n}" for name, n in sorted(self.dtypes.items())),
        ]
        if self.ema:
            lines.append(
                f"  averages    {self.ema:,} tensors of model_ema.*; ldm.load(…, ema=True) takes them"
            )
        for title in ("missing", "unexpected", "mismatched", "ignored"):
            if names := getattr(self, title):
                lines.append(f"  {title:<11} {summary(names)}")
        return "\n".join(lines)

    @property
    def problems(self) -> str:
        """One sentence on what keeps the model from being loaded exactly; empty if nothing does."""
        kinds = ("missing", "unexpected", "mismatched")
        whole = [f"there is no tensor of {name}" for name in self.absent]
        return "; ".join(
            [*whole, *(f"{kind}: {summary(names)}" for kind in kinds if (names := getattr(self, kind)))]
        )


def compare(
    source: Path,
    layout: str,
    family: Family,
    parts: Sequence[Part],
    ignored: Sequence[str],
    reasons: list[str],
) -> Report:
    """Every key of every network against every tensor of the files."""
    missing, mismatched, absent, used = [], [], [], set()
    entries: dict[str, Entry] = {}
    for p in parts:
        label = "" if layout == "original" else f"{p.name}/"
        entries |= {label + key: entry for key, entry in p.store.entries.items()}
        keys = [label + source.key for source in p.table.values()]
        used.update(keys)
        if not any(key in entries for key in keys):
            prefix = commonprefix(keys)  # noqa: RUF071, for these are no paths
            absent.append(f"the {TITLES[p.name]} ({prefix}*)")
        for key, (ours, tensor) in zip(keys, p.model.state_dict().items(), strict=True):
            if key not in entries:
                missing.append(key)
            elif problem := difference(entries[key], p.table[ours].form.shape(tuple(tensor.shape))):
                mismatched.append(f"{key} {problem}")
    others = [key for key in entries if key not in used]
    known = [key for key in others if any(re.fullmatch(pattern, key) for pattern in ignored)]
    ema = [key for key in entries if key.startswith("model_ema.diffusion_model")]
    counts = {p.name: sum(tensor.numel() for tensor in p.model.parameters()) for p in parts}
    return Report(
        source=str(source),
        family=family.name,
        layout=layout,
        prediction=family.prediction.name,
        parameters=sum(counts.values()),
        parts=counts,
        dtypes=dtypes_in(entries.values()),
        ema=len(ema),
        missing=missing,
        unexpected=[key for key in others if key not in set(known)],
        mismatched=mismatched,
        ignored=known,
        absent=absent,
        reasons=reasons,
    )


def difference(entry: Entry, shape: tuple[int, ...]) -> str:
    """What is wrong with a tensor of a file that should have a shape; empty if nothing is."""
    if entry.shape != shape:
        return f"has shape {entry.shape}, not {shape}"
    plain = entry.dtype.is_floating_point and entry.dtype.itemsize > 1
    return "" if plain else f"is of {entry.dtype}, as quantised weights are"


def shapes_in(entries: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a file."""
    return {key: entry.shape for key, entry in entries.items()}


def dtypes_in(entries: Iterable[Entry]) -> dict[str, int]:
    """How many tensors have each dtype."""
    return dict(Counter(NAMES[entry.dtype] for entry in entries))


def summary(names: list[str], most: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
