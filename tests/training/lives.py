"""`ldm train`, killed over and over, each time gone on with.

python -m tests.training.lives FOLDER KILLS SEED prints as JSON what came of it. Each life is a fork of a
process that has imported torch, with no threads; it is the command itself, which tells of a save by a pipe.
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ldm.cli import main
from ldm.training import loop
from ldm.training.checkpoints import Checkpoint, latest, load
from ldm.training.places import HIDDEN, listed, step_of
from tests.training.pairs import LITTLE
from tests.training.runs import numbers, place, told, words
from tests.training.trainee import digest, forked

LONGEST = 0.6  # seconds until a kill, from the first save of a life
BEFORE = 2.0  # the same from its beginning
MORE = 3  # steps after the last kill
OPTIONS = {"save_every": 1, "accumulate": 2, "data": {"crop": "random", "flip": 0.5}, "drop": 0.3}


def life(folder: Path, out: Path, steps: int, tells: int, **more: Any) -> None:
    """The command, until so many steps."""
    real, silent = loop.Run.save, (folder / "said").open("a")
    os.dup2(silent.fileno(), 1)
    os.dup2(silent.fileno(), 2)

    def save(run: loop.Run) -> None:
        real(run)
        os.write(tells, run.done.to_bytes(8, "little"))

    loop.Run.save = save  # type: ignore[method-assign]
    settings = told(folder, out, steps=steps, **{**OPTIONS, **more})
    if code := main(["train", "diffusion", "--resume", *words(settings)]):
        os._exit(code)


def hashed(found: Checkpoint) -> str:
    """Of all that a step is: not the folder and the end of a run, nor generators that it does not use."""
    tensors = {group: each for group, each in found.tensors.items() if group != "random"}
    return digest(tensors, {key: found.facts[key] for key in ("optimiser", "bad")})


def trials(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a run again and again, each time going on from what is there."""
    place(folder, LITTLE)
    rng, found, wrong = random.Random(seed), dict[int, str](), list[str]()
    out, last, midway, begun = folder / "run", 0, 0, time.monotonic()
    for trial in range(kills):
        early = trial % 4 == 3
        wait = rng.uniform(0, BEFORE if early else LONGEST)
        said = forked(lambda tells: life(folder, out, 10**6, tells), wait, wait=not early)
        safe = int.from_bytes(said[-8:], "little") or last
        if not listed(out):
            wrong += [f"kill {trial}: step {safe} is lost"] if safe else []
            continue
        newest, taken = listed(out)[0], latest(out)
        midway += any(HIDDEN.fullmatch(path.name) for path in out.iterdir())
        if taken.path != newest or taken.step < safe:
            wrong.append(f"kill {trial}: {newest} is torn, or step {safe} lost; {taken.step} is there")
        found[taken.step] = hashed(taken)
        last = taken.step
    forked(lambda tells: life(folder, out, last + MORE, tells))
    found[last + MORE] = hashed(latest(out))
    forked(lambda tells: life(folder, folder / "whole", last + MORE, tells, keep=10**6))
    whole = {step_of(path): hashed(load(path)) for path in listed(folder / "whole")}
    wrong += [f"step {step} differs" for step, made in found.items() if made != whole[step]]
    lines, wanted = numbers(out), numbers(folder / "whole")
    steps = [line["step"] for line in lines]
    wrong += [f"the line {line} is another" for line in lines if line not in wanted]
    wrong += [f"the line {line} is missing" for line in wanted if line not in lines]
    wrong += [] if steps == sorted(set(steps)) else ["the lines are in disorder"]
    return {"kills": kills, "midway": midway, "steps": last + MORE, "compared": len(found), "wrong": wrong,
            "others": len(set(whole.values())), "lines": len(lines),
            "seconds": round(time.monotonic() - begun, 1),
            "left": sorted(path.name for path in out.iterdir())}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())  # what it imports is then in every life
    print(json.dumps(trials(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
