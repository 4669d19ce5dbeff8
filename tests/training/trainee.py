"""A run with two weights that saves after every step and is killed over and over.

python -m tests.training.trainee FOLDER KILLS SEED prints as JSON what came of it. Torch is imported once:
each child is forked from a process that has no threads and has computed no gradient.
"""

import hashlib
import json
import os
import random
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ldm.training.checkpoints import latest, save
from ldm.training.places import HIDDEN, listed
from ldm.training.states import (
    flatten_optimiser,
    random_states,
    restore_optimiser,
    set_random_states,
)

LONGEST = 0.08  # seconds until a kill
MORE = 10  # steps after the last kill


@dataclass
class Run:
    """All that a step changes; the generators' states are the rest."""

    net: nn.Linear = field(default_factory=lambda: nn.Linear(1, 1))
    position: int = 0  # in the data
    step: int = 0

    def __post_init__(self):
        self.optimiser = torch.optim.AdamW(self.net.parameters(), 1e-2)


def begin():
    """The first state, or the one to go on from, is put over this."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    return Run()


def advance(run):
    """One step, with draws from every generator."""
    x = torch.randn(4, 1) + run.position / 100
    y = 3 * x - 1 + random.gauss(0, 0.1) + 0.1 * np.random.randn()
    run.optimiser.zero_grad()
    (run.net(x) - y).square().mean().backward()
    run.optimiser.step()
    run.position = (run.position + 37) % 100
    run.step += 1


def content(run):
    """The tensors and facts of a checkpoint."""
    optimiser, slots = flatten_optimiser(run.optimiser.state_dict())
    generators, states = random_states()
    tensors = {"weights": run.net.state_dict(), "optimiser": optimiser, "random": generators}
    return tensors, {"optimiser": slots, "random": states, "position": run.position}


def resumed(found):
    run = begin()
    run.net.load_state_dict(found.tensors["weights"])
    run.optimiser.load_state_dict(restore_optimiser(found.tensors["optimiser"], found.facts["optimiser"]))
    set_random_states(found.tensors["random"], found.facts["random"])
    run.position, run.step = found.facts["position"], found.step
    return run


def digest(tensors, facts):
    """A hash of every bit of a state."""
    made = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for group in sorted(tensors):
        for name in sorted(tensors[group]):
            tensor = tensors[group][name].detach().contiguous().reshape(-1)
            made.update(f"{group} {name} {tensor.dtype}".encode() + bytes(tensor.view(torch.uint8).numpy()))
    return made.hexdigest()


def train(folder, steps, told):
    """Go on up to a step, saving after each, every third twice; the steps that are safe go to a pipe."""
    run = resumed(latest(folder)) if listed(folder) else begin()
    while run.step < steps:
        advance(run)
        for _ in range(2 if run.step % 3 == 0 else 1):
            save(folder, run.step, *content(run))
        os.write(told, run.step.to_bytes(8, "little"))


def uninterrupted(steps, told):
    """The hash after each step of a run that saves nothing."""
    run = begin()
    for _ in range(steps):
        advance(run)
        os.write(told, digest(*content(run)).encode())


def forked(work, seconds=None, wait=False):
    """Do it in a child, killed after a time, counted from what it tells first; what it told until then."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reads)
            work(writes)
            code = 0
        finally:
            os._exit(code)
    os.close(writes)
    if seconds is not None:
        if wait:
            select.select([reads], [], [])
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reads, "rb") as file:
        told = file.read()
    _, status = os.waitpid(child, 0)
    if seconds is None or not os.WIFSIGNALED(status):
        assert status == 0, f"a child ended by itself with {status}"
    return told


def trials(folder, kills, seed):
    """Kill a run again and again, each time going on from what is there."""
    rng, found, wrong = random.Random(seed), {}, []
    last, midway, begun = 0, 0, time.monotonic()
    for trial in range(kills):
        # at every second one the run is sure to come on, however slow the machine is
        told = forked(lambda told: train(folder, 10**9, told), rng.uniform(0, LONGEST), wait=trial % 2 == 1)
        safe = int.from_bytes(told[-8:], "little") or last
        if not listed(folder):
            wrong += [f"kill {trial}: step {safe} is lost"] if safe else []
            continue
        newest, taken = listed(folder)[0], latest(folder)
        midway += any(HIDDEN.fullmatch(path.name) for path in folder.iterdir())
        if taken.path != newest or taken.step < safe:
            wrong.append(f"kill {trial}: {newest} is torn, or step {safe} lost; {taken.step} is there")
        found[taken.step] = digest(taken.tensors, taken.facts)
        last = taken.step
    forked(lambda told: train(folder, last + MORE, told))
    end = latest(folder)
    found[end.step] = digest(end.tensors, end.facts)
    hashes = forked(lambda told: uninterrupted(last + MORE, told)).decode()
    expected = [hashes[i : i + 64] for i in range(0, len(hashes), 64)]
    wrong += [f"step {step} differs" for step, made in found.items() if made != expected[step - 1]]
    seconds = time.monotonic() - begun
    return {"kills": kills, "midway": midway, "steps": end.step, "compared": len(found), "wrong": wrong,
            "seconds": round(seconds, 1), "left": sorted(path.name for path in folder.iterdir())}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    begin()  # what torch imports for its first optimiser, which takes a second, is then in every child
    print(json.dumps(trials(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
