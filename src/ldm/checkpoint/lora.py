"""LoRA: small changes of weights, W + scale up down (Hu et al. 2022, eq. 3), from a file of their own.

Two namings are read, with modules' names of diffusers and transformers; in the first the official ones too:

    kohya   lora_unet_down_blocks_0_…_to_q.lora_down.weight, .lora_up.weight, .alpha; lora_te, _te1, _te2
    PEFT    unet.down_blocks.0.….to_q.lora_A.weight, .lora_B.weight; text_encoder, text_encoder_2

scale = alpha / rank, 1 where there is no alpha.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import diffusers, original
from ldm.checkpoint.files import File, write
from ldm.checkpoint.paths import source_path, target_path
from ldm.checkpoint.table import Form, table
from ldm.checkpoint.values import check_finite
from ldm.errors import CheckpointError, InputError
from ldm.model import Model

HALVES = (  # how the ends of names are called, each to what it is
    (r"\.(lora_down|lora_A|lora\.down|lora_linear_layer\.down)\.weight", "down"),
    (r"\.(lora_up|lora_B|lora\.up|lora_linear_layer\.up)\.weight", "up"),
    (r"\.alpha", "alpha"),
    (r"_lora\.down\.weight", "down"),
    (r"_lora\.up\.weight", "up"),
)
NAMINGS = {"peft": ("lora_A", "lora_B"), "kohya": ("lora_down", "lora_up")}
MOST_SHOWN = 4


@dataclass(frozen=True)
class Change:
    """The change of one weight."""

    down: Tensor  # [rank, inputs …]
    up: Tensor  # [outputs, rank …]
    scale: float

    def of(self, weight: Tensor) -> Tensor:
        """What is added to a weight, in its shape, float32."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return self.scale * product.reshape(weight.shape)


Changes = dict[tuple[str, str], Change]  # network and our key -> its change


def read_lora(source: str | Path, model: Model) -> Changes:
    """The changes in a file, for a model. Raises CheckpointError naming keys that fit none of its weights."""
    path = source_path(source)
    file = File.open(path)
    known = dict(names(model))
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    unknown = []
    for key in file.entries:
        module, half = split(key)
        if half is None or module not in known:
            unknown.append(key)
            continue
        value = file.read(key)
        check_finite(value, f"{path}: {key}")
        found.setdefault(known[module], {})[half] = value
    if unknown or not found:
        more = f" and {len(unknown) - MOST_SHOWN} more" if len(unknown) > MOST_SHOWN else ""
        what = ", ".join(unknown[:MOST_SHOWN]) + more or "nothing"
        raise CheckpointError(
            f"{path} has {what}, for which {model.family.name} has no weight; "
            "use it with the model it was made for"
        )
    return {place: change(path, model, place, halves) for place, halves in found.items()}


def write_lora(
    path: str | Path, model: Model, changes: Changes, naming: str = "peft", dtype: torch.dtype = torch.float32
) -> None:
    """Write changes to a .safetensors file, by the names of diffusers' modules, which it loads.

    naming  "kohya", with alpha; "peft", where the scale is in `up`
    Raises InputError; CheckpointError for a weight that is no module of its own there, and if the file cannot
    be written.
    """
    if naming not in NAMINGS:
        raise InputError(f"naming must be one of {', '.join(NAMINGS)}, not {naming!r}")
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path} must end in .safetensors, for that is what is written")
    down, up = NAMINGS[naming]
    there = {(name, ours): (short, theirs, form) for name, short, ours, theirs, form in folder_names(model)}
    out: dict[str, Tensor] = {}
    networks: dict[str, Any] = dict(model.named_networks())
    for place, change in changes.items():
        if place not in there:
            raise CheckpointError(f"{'/'.join(place)} is no module of its own in diffusers; train without it")
        short, theirs, form = there[place]
        module = f"{place[0]}.{theirs}" if naming == "peft" else f"{short}_{flat(theirs)}"
        weight = networks[place[0]].get_submodule(place[1].removesuffix(".weight")).weight
        shape = form.shape(tuple(weight.shape))
        axes, scale = (1,) * (len(shape) - 2), change.scale if naming == "peft" else 1.0
        rank = len(change.down)
        out[f"{module}.{down}.weight"] = change.down.reshape(rank, *shape[1:]).to("cpu", dtype)
        out[f"{module}.{up}.weight"] = (scale * change.up).reshape(shape[0], rank, *axes).to("cpu", dtype)
        if naming == "kohya":
            out[f"{module}.alpha"] = torch.tensor(change.scale * rank)
    write(target_path(path), out, {})


def split(key: str) -> tuple[str, str | None]:
    """A name as that of a module and what is said of it: "down", "up" or "alpha"; None for anything else."""
    for pattern, half in HALVES:
        module, hits = re.subn(pattern + "$", "", key)
        if hits:
            return module.replace(".processor.", "."), half
    return key, None


def change(path: Path, model: Model, place: tuple[str, str], halves: dict[str, Tensor]) -> Change:
    """The change of a weight from its parts. Raises CheckpointError where they do not fit it."""
    name, ours = place
    weight = model.named_networks()[name].get_parameter(ours)
    if not {"down", "up"} <= halves.keys():
        raise CheckpointError(
            f"{path}: of {name}/{ours} there is only {', '.join(halves)}; get the file again"
        )
    down, up = halves["down"], halves["up"]
    rank = len(down)
    alpha = float(halves["alpha"]) if "alpha" in halves else rank
    fits = up.ndim > 1 and up[0].numel() == rank and len(up) * down[0].numel() == weight.numel()
    if not fits or len(up) != len(weight):
        raise CheckpointError(
            f"{path}: {tuple(up.shape)} times {tuple(down.shape)} does not fit {name}/{ours}, "
            f"{tuple(weight.shape)}; use it with the model it was made for"
        )
    return Change(down, up, alpha / rank)


def names(model: Model) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every name that a module of a model may have in a file -> its network and our key."""
    for name, short, ours, theirs, _ in folder_names(model):
        yield from ((f"{name}.{theirs}", (name, ours)), (f"{short}_{flat(theirs)}", (name, ours)))
    for ours, theirs, _ in modules(model.unet, original.unet_rules(model.family.unet, "")):
        yield f"lora_unet_{flat(theirs)}", ("unet", ours)


def folder_names(model: Model) -> Iterator[tuple[str, str, str, str, Form]]:
    """Of each module: network, what kohya calls that, our key, its name in diffusers, its form there."""
    family, several, networks = model.family, len(model.family.texts) > 1, model.named_networks()
    rules = diffusers.rules(family, ("text_model.",) * len(family.texts), old_attention=False)
    shorts = {"unet": "lora_unet"}
    for i, text in enumerate(family.texts):
        shorts[text.name] = (
            f"lora_te{i + 1}" if several else "lora_te2" if text.name.endswith("2") else "lora_te"
        )
    for name, short in shorts.items():
        for module in modules(networks[name], rules[name]):
            yield name, short, *module


def modules(network: nn.Module, rules: list) -> Iterator[tuple[str, str, Form]]:
    """Our keys of a network's weights, the names of their modules elsewhere, and their forms there."""
    keys = (re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", key) for key in network.state_dict())
    for ours, source in table((key for key in keys if key.endswith(".weight")), rules).items():
        if source.form.part is None:  # of a fused weight no third alone
            yield ours, source.key.removesuffix(".weight"), source.form


def flat(module: str) -> str:
    """A module's name as kohya writes it."""
    return module.replace(".", "_")
