"""A step of training a small Stable Diffusion 1, ours and that of diffusers' own loop with accelerate.

Both begin from one folder of weights, and in each step read PNG files of the right size, encode them and
their captions, train the UNet, clip the gradient and update by AdamW with the same figures. That it is the
same step is checked: with equal draws, loss and gradient agree step after step.

    ideal of n processes = seconds of 1 process with all of their batch / n        each on one thread
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import trainer
from benchmarks.table import Row
from benchmarks.timing import medians
from benchmarks.trainer import FAMILY, IMAGES
from ldm.training.diffusion import Diffusion
from ldm.training.draws import of_rows, times
from ldm.training.folders import entries
from ldm.training.loop import Run
from ldm.training.rows import rows_of

BATCH = 4  # images of a step, of each process
ROUNDS, COMPARED = 9, 3
PROCESSES, STEPS, TURNS = 2, 3, 3
FULL_SHARE = 0.27  # of the frozen networks in the passes of SD 1.5 itself at 512×512, measured on one thread


def rows() -> Iterator[Row]:
    """The step, the step with what is frozen remembered, and how much two processes help."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        trainer.write(folder)
        yield from against_peer(folder)
        yield scaled(f"training step on {PROCESSES} processes", folder, 0.85)
        yield scaled(
            "the same, latents and text features cached", folder, None, "--cache", str(folder / "cache")
        )


def against_peer(folder: Path) -> Iterator[Row]:
    """Our step, without and with a cache, and theirs."""
    from benchmarks.text_to_image import Loop, Recipe

    said = trainer.settings_of(folder, BATCH)
    recipe = Recipe(BATCH, said.rate, (said.betas[0], said.betas[1]), said.decay, said.clip)
    ours = trainer.begin(folder, BATCH)
    cached = trainer.begin(folder, BATCH, str(folder / "cache"))
    theirs = Loop(folder / "model", entries(folder / "images"), recipe)
    apart = max(difference(ours, theirs) for _ in range(COMPARED))
    if not apart < 1e-4:  # float32 through some hundred layers
        raise AssertionError(f"the two steps differ by {apart:.1e} of the loss or its gradient: not the same")
    batch = next(theirs.batches)
    contestants = {
        "ours": ours.step, "cached": cached.step, "theirs": theirs.step,
        "frozen": lambda: theirs.encoded(batch),
    }  # fmt: skip
    found = medians(contestants, ROUNDS, IMAGES // BATCH)
    threads, share = f"{torch.get_num_threads()} thread(s)", found["frozen"] / found["theirs"]
    yield Row(
        f"training step, batch {BATCH}, {FAMILY.size}×{FAMILY.size} pixels", found["ours"], found["theirs"],
        ratio=1.0, note=f"{sizes()}; loss and gradient agree to {apart:.0e}; {threads}",
    )  # fmt: skip
    yield Row(
        "the same, latents and text features cached", found["cached"], found["theirs"], ratio=1.5,
        note=f"the peer runs the frozen networks each time: {share:.0%} of its step ({FULL_SHARE:.0%} "
        f"at full size); {threads}",
    )  # fmt: skip


def sizes() -> str:
    """What was reduced, in words."""
    unet, vae = (" ".join(map(str, each.channels)) for each in (FAMILY.unet, FAMILY.vae))
    (text,) = FAMILY.texts
    return f"channels of the UNet {unet}, of the VAE {vae}; CLIP of {text.config.layers} layers; PNGs read"


def difference(ours: Run, theirs: Any) -> float:
    """How far apart loss and gradient of one more step are, both with our draws, relative."""
    from benchmarks.text_to_image import Draws, collated

    diffusion, k = ours.model, ours.done
    assert isinstance(diffusion, Diffusion)
    family, side = diffusion.model.family, FAMILY.size // FAMILY.vae.factor
    shape = (family.vae.latent_channels, side, side)
    names = next(rows_of(diffusion.settings, diffusion.model)(k)).names
    u, (sample, noise) = of_rows(diffusion.settings.seed, range(k * BATCH, (k + 1) * BATCH), 2, shape, shape)
    places = {entry.name: i for i, entry in enumerate(theirs.data.entries)}
    batch = collated([theirs.data[places[name]] for name in names])
    told, other = ours.step(), theirs.step(batch, Draws(sample, noise, times(u[:, 0], family.schedule)))
    return max(abs(told["loss"] / other.loss - 1), abs(told["norm"] / other.norm - 1))


def scaled(what: str, folder: Path, goal: float | None, *more: str) -> Row:
    """A step of several processes; theirs is the ideal. One process and several take turns."""
    found: dict[int, list[float]] = {1: [], PROCESSES: []}
    for turn in range(TURNS):
        for processes in found if turn % 2 else reversed(found):
            found[processes] += steps(folder, processes, *more)
    alone, together = (median(each) for each in found.values())
    return Row(
        what, together, alone / PROCESSES, ratio=goal,
        note=f"gloo, batch {BATCH} and 1 thread each; theirs is the ideal, {alone:.3g} s of 1 process with "
        f"batch {BATCH * PROCESSES}, divided by {PROCESSES}",
    )  # fmt: skip


def steps(folder: Path, processes: int, *more: str) -> list[float]:
    """Seconds of each step of a run in fresh processes, one thread each."""
    out = folder / "steps.json"
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    figures = [str(BATCH * PROCESSES), str(STEPS), str(out)]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "benchmarks.trainer", str(folder), *figures, *more],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"training in {processes} processes ended with {done.returncode}:\n{done.stderr}")
    return json.loads(out.read_text("utf-8"))
