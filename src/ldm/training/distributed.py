"""A model that several ranks train: with DDP each has all of it, with FSDP2 a part of every tensor.

    g = mean over ranks of g_rank          each sees its own rows of a batch; `Ranks` says who is who

What is saved is whole tensors, whichever way it was: a run goes on with another number of ranks, or alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldm.checks import one_of
from ldm.errors import InputError
from ldm.ranks import Ranks

WAYS = ("ddp", "fsdp")


def spread(
    model: nn.Module, ranks: Ranks, way: str = "ddp", units: Mapping[nn.Module, Sequence[nn.Module]] = {}
) -> nn.Module:
    """What is called instead of the model; the model itself keeps its names.

    way    "ddp", or "fsdp" for what is too large for one device: its parameters become DTensors
    units  fsdp: the networks, and the blocks in them that are gathered one at a time
    Raises InputError for fsdp without torchrun.
    """
    if one_of("spread", way, WAYS) == "fsdp":
        if not torch.distributed.is_initialized():
            raise InputError("spread=fsdp needs several processes; start with torchrun, or give spread=ddp")
        # imported here, as it takes as long as torch itself
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = init_device_mesh(ranks.device.type, (ranks.size,))
        for network, blocks in units.items():
            for part in (*blocks, network):
                fully_shard(part, mesh=mesh)
            if hasattr(network, "pooled"):
                register_fsdp_forward_method(network, "pooled")
        return model
    if ranks.size == 1:
        return model
    own = [ranks.device] if ranks.device.type == "cuda" else None
    # what is in none of the networks, as a discriminator, may have no part in a step
    inside = {p for network in units for p in network.parameters()}
    unheard = not {p for p in model.parameters() if p.requires_grad} <= inside
    return DistributedDataParallel(model, device_ids=own, find_unused_parameters=unheard)


@contextmanager
def unsynced(model: nn.Module) -> Iterator[None]:
    """Within it gradients are added up on each rank alone: for all parts of a batch but the last."""
    with ExitStack() as stack:
        if isinstance(model, DistributedDataParallel):
            stack.enter_context(model.no_sync())
        for part in model.modules():
            if sync := getattr(part, "set_requires_gradient_sync", None):  # of FSDP2
                sync(False, recurse=False)
                stack.callback(sync, True, recurse=False)
        yield


def part_again(model: nn.Module) -> None:
    """Let go of the whole tensors that FSDP2 keeps after a forward pass, as a backward one does."""
    for part in model.modules():
        if reshard := getattr(part, "reshard", None):
            reshard()


def in_parts(x: Any) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(x, "full_tensor")


def whole(x: Any) -> Tensor:
    """A tensor that may be in parts, whole on every rank; all of them must ask for it."""
    return x.full_tensor() if in_parts(x) else x


def gathered(named: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on the first rank, and nothing on the others, which must ask for them too."""
    found = {}
    for name, x in named.items():
        full = whole(x.detach())
        if ranks.first:
            found[name] = full.cpu() if in_parts(x) else full
    return found


def like(own: Any, full: Tensor) -> Tensor:
    """A whole tensor as the model has its own: in parts, if that is."""
    if not in_parts(own):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(own.device), own.device_mesh, own.placements)


def parted(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The state_dict of an optimiser with whole tensors, in parts where its parameters are."""

    def fitted(own: Tensor, value: Any) -> Any:
        return like(own, value) if isinstance(value, Tensor) and value.shape == own.shape else value

    slots = {
        i: {name: fitted(parameters[i], value) for name, value in each.items()}
        for i, each in state["state"].items()
    }
    return state | {"state": slots}


def unparted(state: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Its inverse on the first rank; the others, which must ask for it too, keep their parts."""
    slots = {
        i: each | gathered({name: x for name, x in each.items() if isinstance(x, Tensor)}, ranks)
        for i, each in state["state"].items()
    }
    return state | {"state": slots}
