"""Runs of `ldm train` on several processes, each a fork of one that has imported torch once.

python -m tests.training.pairs FOLDER GROUP prints as JSON what came of the runs of a group. What torchrun
sets is set here, but nobody ends the other processes where one fails: each has to notice by itself.
"""

import importlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import ldm
from ldm.cli import main
from ldm.commands.train import kind_of
from ldm.family import Text
from ldm.training import diffusion
from ldm.training.places import listed, step_of
from ldm.unet import UNetConfig
from tests import tiny
from tests.training.runs import SMALL, frozen, losses, place, told, words

PATIENCE = 240  # seconds until a process that hangs is killed
STEPS = 4
BOTH = {"networks": ["unet", "text_encoder"], "batch": 8, "accumulate": 2, "times": "stratified", "drop": 0.3,
        "steps": STEPS, "save_every": 1, "keep": 10, "data": {"crop": "random", "flip": 0.5},
        "sheet": {"every": 3, "prompts": ["a dog"], "steps": 2, "images": 4}}  # fmt: skip
# of few tensors, as FSDP2 takes its time for each
LITTLE = replace(
    SMALL, unet=UNetConfig(channels=(8,), depth=(0,), res_blocks=1, context_dim=16, heads=2, groups=8)
)
# the UNet hears no more than the first of its two layers, as in Stable Diffusion 2
UNHEARD = replace(LITTLE, texts=(Text(replace(SMALL.texts[0].config, skip=1)),))

# a run, what goes on with it, and its processes
WAYS = (("fsdp", "one", 1), ("ddp", "one", 1), ("one", "ddp", 2), ("fsdp", "ddp", 2), ("one", "fsdp", 2),
        ("ddp", "fsdp", 2))  # fmt: skip

Before = Callable[[int], Any]  # what a process does first, told its rank


def processes(size: int, arguments: Sequence[str], log: Path, before: Before = lambda rank: None) -> Any:
    """The exit codes of `ldm` on so many processes, and how many seconds they ended apart."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = [forked(rank, size, port, arguments, log, before) for rank in range(size)]
    begun, ends = time.monotonic(), dict[int, tuple[int, float]]()
    while len(ends) < size:
        for rank in set(range(size)) - ends.keys():
            done, status = os.waitpid(children[rank], os.WNOHANG)
            if done:
                ends[rank] = os.waitstatus_to_exitcode(status), time.monotonic()
            elif time.monotonic() - begun > PATIENCE:
                os.kill(children[rank], signal.SIGKILL)
        time.sleep(0.02)
    moments = [at for _, at in ends.values()]
    return {"codes": [ends[rank][0] for rank in range(size)], "apart": max(moments) - min(moments)}


def forked(rank: int, size: int, port: str, arguments: Sequence[str], log: Path, before: Before) -> int:
    """A process of a run; what it prints goes to a file."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.with_suffix(f".{rank}").open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if size > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        before(rank)
        code = main(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fails(step: int, how: Callable[[], Any], rank: int = 1) -> Before:
    """In one process something happens in the forward pass of a step, from 0."""

    def before(own: int) -> None:
        real, calls = diffusion.Diffusion.forward, [0]

        def forward(self: Any, batch: Any, rows: Any) -> Any:
            calls[0] += 1
            if calls[0] == step + 1:
                how()
            return real(self, batch, rows)

        if own == rank:
            diffusion.Diffusion.forward = forward  # type: ignore[method-assign]

    return before


def raises() -> None:
    raise ValueError("this process fails")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


HOWS = {"raises": raises, "dies": dies}


def unheard(rank: int) -> None:
    """The model is one whose text encoder has a layer that nobody hears."""
    ldm.load = lambda *args, **options: frozen(tiny.make(UNHEARD))


def spent() -> float:
    """Seconds of computing of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Runs:
    """Runs in a folder, and what each came to."""

    def __init__(self, folder: Path):
        self.folder, self.found = place(folder, LITTLE), dict[str, Any]()

    def run(
        self, name: str, size: int, before: Before = lambda rank: None, resume: bool = False,
        kind: str = "diffusion", **more: Any,
    ) -> None:  # fmt: skip
        """Train on so many processes, and note what came of it."""
        out, begun = self.folder / name, spent()
        settings = told(self.folder, out, kind_of(kind)[0], **{**BOTH, **more})
        arguments = ["train", kind, *words(settings), *(["--resume"] if resume else [])]
        found = processes(size, arguments, self.folder / name, before)
        steps = [step_of(path) for path in listed(out)]
        logs = [(self.folder / f"{name}.{rank}").read_text() for rank in range(size)]
        there = losses(out) if (out / "metrics.jsonl").is_file() else []
        self.found[name] = found | {"losses": there, "steps": steps, "logs": logs,
                                    "spent": round(spent() - begun, 1)}  # fmt: skip

    def copy(self, name: str, new: str, step: int) -> None:
        """A run as it was after a step."""
        shutil.copytree(self.folder / name, self.folder / new)
        for path in listed(self.folder / new):
            if step_of(path) > step:
                shutil.rmtree(path)
        for rest in ("model", "sheets"):
            shutil.rmtree(self.folder / new / rest, ignore_errors=True)


def few(runs: Runs) -> None:
    """One process, two, two that end as FSDP2 has it, and two of which one is killed."""
    runs.run("one", 1)
    runs.run("ddp", 2)
    runs.copy("ddp", "ddp-fsdp", 3)
    runs.run("ddp-fsdp", 2, resume=True, spread="fsdp")
    runs.run("seed", 1, seed=1, steps=1)
    ending(runs, "dies", dies, "ddp")


def fsdp(runs: Runs) -> None:
    """FSDP2 from the first step, and every way of going on with what another left."""
    runs.run("one", 1)
    runs.run("ddp", 2)
    runs.run("fsdp", 2, spread="fsdp")
    for old, new, size in WAYS:
        runs.copy(old, f"{old}-{new}", 2)
        runs.run(f"{old}-{new}", size, resume=True, spread="fsdp" if new == "fsdp" else "ddp")


def ends(runs: Runs) -> None:
    """One process fails, or is killed."""
    for name, how in HOWS.items():
        for spread in ("ddp", "fsdp"):
            ending(runs, name, how, spread)


def ending(runs: Runs, name: str, how: Callable[[], Any], spread: str) -> None:
    """Something happens to one process in step 3 of a run that saves each."""
    more = {"accumulate": 1, "save_every": 1, "spread": spread, "steps": 50, "sheet": {}}
    runs.run(f"{name}-{spread}", 2, fails(2, how), **more)


def layers(runs: Runs) -> None:
    """A text encoder with a layer that nobody hears."""
    for name, size, spread in (("one", 1, "ddp"), ("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")):
        runs.run(f"unheard-{name}", size, unheard, spread=spread, sheet={}, steps=2)


def others(runs: Runs) -> None:
    """A LoRA and a word."""
    word = {"token": "<dog>", "init": "a", "data": {"path": str(runs.folder / "alone")}}
    for kind, more in (("lora", {"rank": 2}), ("inversion", word)):
        for size in (1, 2):
            runs.run(f"{kind}-{size}", size, kind=kind, sheet={}, rate=1e-2, **more)


GROUPS = {each.__name__: each for each in (few, fsdp, ends, layers, others)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] in HOWS:  # as one of torchrun's processes
        fails(2, HOWS[sys.argv[1]])(int(os.environ["RANK"]))
        sys.exit(main(sys.argv[2:]))
    torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())  # what it imports is then in every process
    importlib.import_module("torch.distributed.fsdp")
    chosen = Runs(Path(sys.argv[1]))
    for group in sys.argv[2:]:
        GROUPS[group](chosen)
    print(json.dumps(chosen.found))
