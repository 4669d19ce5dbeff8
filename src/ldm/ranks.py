"""Several processes of one run, as `torchrun` starts them: which one this is, and what they do together.

torchrun --nproc-per-node 2 -m ldm …        sets RANK, WORLD_SIZE and LOCAL_RANK, and ends all where one fails
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ldm.devices import find_device
from ldm.errors import DeviceError, InputError, LdmError

PATIENCE = timedelta(minutes=30)  # that a rank waits for another; one that ends is noticed at once
LOST = re.compile(
    r"gloo|nccl|connection|peer|process group|timed out", re.IGNORECASE
)  # of torch's complaints
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run."""

    rank: int = 0  # 0 to size - 1
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of the values [n] of all ranks, on all of them. Raises LdmError if one of them ended."""
        if self.size > 1:
            total = values.clone()
            with self.together():
                dist.all_reduce(total)
            values = total / self.size
        return values

    def wait(self) -> None:
        """Until every rank is here. Raises LdmError if one of them ended."""
        if self.size > 1:
            with self.together():
                dist.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block torch's complaint that another rank is gone becomes a sentence."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            if self.size == 1 or not LOST.search(reason):
                raise
            raise LdmError(
                f"process {self.rank + 1} of {self.size} lost another, whose own message says why ({reason})"
            ) from error


@contextmanager
def joined(device: str = "") -> Iterator[Ranks]:
    """This process among those that torchrun started, or alone; NCCL joins GPUs, and Gloo all else.

    device  such as "cuda"; "": a GPU where there is one. Of several GPUs each rank has its own.
    Raises DeviceError, and InputError for an environment that is torchrun's only in part.
    """
    given = [os.environ.get(name) for name in NAMES]
    if not any(given):
        yield Ranks(device=found(device, 0))
        return
    try:
        rank, size, local = (int(value or "") for value in given)
        if "MASTER_ADDR" not in os.environ:
            raise ValueError
    except ValueError:
        told = ", ".join(f"{name}={value}" for name, value in zip(NAMES, given, strict=True))
        raise InputError(f"{told} are not what torchrun sets; start with torchrun, or unset them") from None
    ranks = Ranks(rank, size, found(device, local))
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    dist.init_process_group("nccl" if ranks.device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield ranks
    dist.destroy_process_group()  # not after an error: it might wait for others, who learn of this one's end


def found(device: str, local: int) -> torch.device:
    """The device of the process that is number `local` on its machine. Raises DeviceError."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cuda":
        return find_device(name)
    if torch.cuda.is_available() and local >= torch.cuda.device_count():
        raise DeviceError(
            f"process {local + 1} of this machine has no GPU of {torch.cuda.device_count()}; "
            "start fewer with --nproc-per-node, or give device=cpu"
        )
    return find_device(f"cuda:{local}")
