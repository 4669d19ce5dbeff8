"""Adapters on a model: changes of its weights that can be taken off again, bit for bit.

W = W0 + sum over the adapters of  weight · change
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint import read_lora
from ldm.checkpoint.lora import Changes
from ldm.checks import number, shown
from ldm.errors import InputError
from ldm.model import Model

MOST_WEIGHT = 1e4


@dataclass(frozen=True)
class Worn:
    """What is on one model."""

    changes: dict[str, tuple[Changes, float]] = field(default_factory=dict)
    plain: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # W0 of every weight that is changed


class Adapters:
    """Those on one model. They are in its weights: sampling knows nothing of them, saving writes them."""

    def __init__(self, model: Model, worn: Worn):
        self.model, self.changes, self.plain = model, worn.changes, worn.plain

    def add(self, source: str | Path, weight: float = 1.0, name: str | None = None) -> str:
        """Put on the LoRA of a file; returns its name. Raises InputError and CheckpointError."""
        self.model.need_weights("a LoRA")
        weight = number("weight", weight, -MOST_WEIGHT, MOST_WEIGHT)
        changes = read_lora(source, self.model)
        name = Path(source).stem if name is None else name
        if not isinstance(name, str) or name in self.changes:
            raise InputError(f"name {shown(name)} is taken, or no str; give another, or unload that first")
        self.changes[name] = changes, weight
        self.apply()
        return name

    def weigh(self, name: str, weight: float) -> None:
        """Give a LoRA another weight."""
        self.model.need_weights("another weight of a LoRA")
        changes, _ = self.changes[self.known(name)]
        self.changes[name] = changes, number("weight", weight, -MOST_WEIGHT, MOST_WEIGHT)
        self.apply()

    def remove(self, name: str | None = None) -> None:
        """Take one off, or all: weights that nothing changes any more are the tensors they were."""
        self.model.need_weights("taking a LoRA off")
        for gone in [self.known(name)] if name is not None else list(self.changes):
            del self.changes[gone]
        self.apply()

    def merge(self) -> None:
        """Make what is on the model its own weights: nothing can be taken off again."""
        self.changes.clear()
        self.plain.clear()

    def known(self, name: str) -> str:
        """A name that is there. Raises InputError."""
        if name not in self.changes:
            there = ", ".join(self.changes) or "none"
            raise InputError(f"no LoRA is called {shown(name)}; there are {there}")
        return name

    @torch.no_grad()
    def apply(self) -> None:
        """Compute every weight that is changed, or was."""
        networks = self.model.named_networks()
        places = {place for changes, _ in self.changes.values() for place in changes}
        for place in places | self.plain.keys():
            weight = networks[place[0]].get_parameter(place[1])
            plain = self.plain.setdefault(place, weight.data)
            if place not in places:
                weight.data = self.plain.pop(place).to(weight.device, weight.dtype)
                continue
            total = plain.float()
            for changes, share in self.changes.values():
                if place in changes:
                    total = total + share * changes[place].of(plain).to(plain.device)
            weight.data = total.to(weight.device, weight.dtype)


class Adapted(Model):
    """A model that LoRAs can be put on."""

    @cached_property
    def worn(self) -> Worn:
        """What is on this model; it does not hold the model, whose memory is freed when it is gone."""
        return Worn()

    @property
    def adapters(self) -> Adapters:
        """The LoRAs on this model."""
        return Adapters(self, self.worn)

    def load_lora(self, source: str | Path, weight: float = 1.0, name: str | None = None) -> str:
        """Put the LoRA of a file on the networks, beside those that are there; returns its name.

        source  kohya's or PEFT's .safetensors
        weight  how much it counts; `adapters.weigh(name, weight)` changes that
        name    by which it is called; None: the file's
        Not while another thread samples. Raises CheckpointError naming keys that fit no weight; InputError.
        """
        return self.adapters.add(source, weight, name)

    def unload_lora(self, name: str | None = None) -> None:
        """Take a LoRA off, or all of them: the weights are again what they were, bit for bit."""
        self.adapters.remove(name)

    def merge_lora(self) -> None:
        """Make all LoRAs part of the model for good; saving writes them either way."""
        self.adapters.merge()
