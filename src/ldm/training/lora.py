"""LoRA: low-rank changes of weights that are trained while the weights stay (Hu et al. 2022, eq. 3).

    W = W0 + (alpha / rank) up down          down [rank, inputs] drawn, up [outputs, rank] zero at first

so that the network begins as it was. The sum is a parametrisation of torch: no network knows of it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ldm.checkpoint.lora import Change, Changes, write_lora
from ldm.checks import number, whole
from ldm.errors import InputError
from ldm.model import Model

ATTENTION = r"(self_attn|cross_attn|attn)\.(q|k|v|out)$"  # the modules that are mostly trained
MOST_RANK = 4096


class LowRank(nn.Module):
    """W0 -> W0 + scale up down, in the shape of W0."""

    def __init__(self, weight: Tensor, rank: int, scale: float, normal: Callable[[Tensor], Tensor]):
        super().__init__()
        inputs = weight[0].numel()
        self.down = nn.Parameter(normal(torch.empty(rank, inputs, device=weight.device)) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * self.up @ self.down).reshape(weight.shape).to(weight.dtype)


class Place(NamedTuple):
    """A module that has a change, in the network of a name."""

    network: str
    key: str  # of the weight
    module: Any
    change: LowRank


class LoRA:
    """Changes on a model, to be trained: `lora.parameters()` to an optimiser, then `lora.save(path)`.

    The model computes with them from now on; `lora.remove()` takes them off, and every weight is what it was,
    bit for bit. The changes are float32 whatever the model is.

    rank       of the changes, 1 to 4096
    alpha      scale times rank; None: the rank, so that the scale is 1
    targets    pattern that the names of modules match, linear ones and convolutions
    networks   names of networks: "unet", or those of `family.texts`
    generator  of what `down` is drawn by
    Raises InputError for networks that the model has not, and where no module matches.
    """

    def __init__(
        self,
        model: Model,
        rank: int = 8,
        alpha: float | None = None,
        *,
        targets: str = ATTENTION,
        networks: Sequence[str] = ("unet",),
        generator: torch.Generator | None = None,
    ):
        rank = whole("rank", rank, MOST_RANK)
        alpha = float(rank) if alpha is None else number("alpha", alpha, 0, 1e6)
        generator = torch.Generator().manual_seed(0) if generator is None else generator

        def normal(like: Tensor) -> Tensor:
            drawn = torch.empty(like.shape, dtype=torch.float32, device="cpu").normal_(generator=generator)
            return drawn.to(like.device)

        self.model = model
        self.places: list[Place] = []
        for name, path, module in matching(model, targets, networks):
            weight = module.weight
            most = min(rank, len(weight), weight[0].numel())  # a matrix has no higher one
            change = LowRank(weight, most, alpha / rank, normal)
            parametrize.register_parametrization(module, "weight", change)
            module.parametrizations.weight.original.requires_grad_(False)
            self.places.append(Place(name, f"{path}.weight", module, change))

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained."""
        for place in self.places:
            yield from (place.change.down, place.change.up)

    def changes(self) -> Changes:
        """The changes as they are now."""
        return {
            (place.network, place.key): Change(
                place.change.down.detach().clone(), place.change.up.detach().clone(), place.change.scale
            )
            for place in self.places
        }

    def save(self, path: str | Path, naming: str = "peft", dtype: torch.dtype = torch.float32) -> None:
        """Write them to a .safetensors file that `pipe.load_lora` and diffusers load; see `write_lora`."""
        write_lora(path, self.model, self.changes(), naming, dtype)

    def remove(self) -> None:
        """Take the changes off."""
        for place in self.places:
            parametrize.remove_parametrizations(place.module, "weight", leave_parametrized=False)
        self.places = []


def matching(model: Model, targets: str, networks: Sequence[str]) -> list[tuple[str, str, Any]]:
    """The modules to change: the network's name, theirs in it, and they."""
    known = model.named_networks()
    for name in networks:
        if name not in known or name == "vae":
            there = ", ".join(other for other in known if other != "vae")
            raise InputError(f"networks has {name!r}, but {model.family.name} has {there}")
        if list(networks).count(name) > 1:
            raise InputError(f"networks has {name!r} twice; take one out")
    try:
        pattern = re.compile(targets)
    except (re.error, TypeError) as error:
        raise InputError(f"targets must be a regular expression, not {targets!r}: {error}") from error
    found = [
        (name, path, module)
        for name in networks
        for path, module in known[name].named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and pattern.search(path)
    ]
    if not found:
        raise InputError(
            f"targets {targets!r} matches no linear module or convolution of {', '.join(networks)}"
        )
    return found
