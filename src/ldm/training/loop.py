"""The loop of training.

    step k:   g = mean over parts of grad L(k, part)
              g <- g min(1, clip / |g|)
              w <- update(w, g, peak rate(k))

A step whose loss or gradient is not finite changes nothing; after some in a row the run stops. What a step
sees is a function of k alone (its batch, times and noise are drawn from seeds made of k), so a run that is
interrupted and begun again is the run that was not, bit for bit on one process. So is one whose loss draws
from the global generators of torch, Python and numpy: their states are part of a checkpoint.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checks import number
from ldm.checks import whole as whole_number
from ldm.errors import InputError, NumericError
from ldm.ranks import Ranks
from ldm.training.changes import check_same
from ldm.training.checkpoints import latest, save
from ldm.training.distributed import gathered, like, parted, unparted, whole
from ldm.training.ema import Average, trained
from ldm.training.places import held, listed, ready, writing
from ldm.training.rates import Rate, constant
from ldm.training.states import flatten_optimiser, random_states, restore_optimiser, set_random_states

Loss = Callable[[int, int], Tensor]  # (step, part) -> the mean loss of a part of a step's batch
Watch = Callable[[int, Mapping[str, float]], Any]  # told (steps done, what is logged of the last one)
Look = Callable[[int], Mapping[str, float]]  # (steps done) -> what is to be logged of the weights
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Plan:
    """How long and how to train."""

    steps: int  # of the optimiser, in all
    rate: Rate = constant  # factor of the optimiser's own rates, of a step
    accumulate: int = 1  # parts of a step's batch, one after another
    clip: float = 1.0  # most that the norm of the gradient may be; 0: anything
    save_every: int = 1000  # steps
    log_every: int = 10  # steps
    look_every: int = 0  # steps; 0: never
    most_bad: int = 10  # steps in a row without a finite gradient
    keep: int = 2  # checkpoints
    free: tuple[str, ...] = field(default=())  # fields of the config that a run that goes on may change


@dataclass
class Run:
    """What is trained, how, and where it is kept."""

    model: nn.Module  # whose parameters with gradients are trained, saved and restored, and its buffers
    optimiser: torch.optim.Optimizer
    loss: Loss  # of a part of a step's batch, both counted from 0; a scalar
    plan: Plan
    folder: Path  # of checkpoints and `metrics.jsonl`
    config: Mapping[str, Any] = field(
        default_factory=dict
    )  # plain data; a run that goes on must have the same
    average: Average | None = None  # of the weights
    ranks: Ranks = Ranks()  # whose losses and gradients are averaged; the first one writes
    unsynced: Callable[[], AbstractContextManager] = nullcontext  # around all parts of a batch but the last
    look: Look | None = None  # at the weights, on every rank
    parts: Callable[[], Mapping[str, float]] = dict  # more to log of the last step, on the first rank
    rows: int = 0  # images of a step, for how many there are in a second
    done: int = 0  # steps
    bad: int = 0  # of them the last ones without a finite gradient

    def step(self) -> dict[str, float]:
        """One step of the optimiser, or none if it is not finite; what there is to tell of it."""
        factor, begun = self.plan.rate(self.done), time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        value, norm = self.gradient()
        self.done += 1
        if isfinite(norm) and isfinite(value):
            if self.plan.clip and norm > self.plan.clip:
                torch._foreach_mul_(gradients(self.model), self.plan.clip / norm)
            self.optimiser.step()
            self.bad = 0
            if self.average is not None:
                self.average.update(self.model, self.done)
        else:
            self.bad += 1
        if self.bad >= self.plan.most_bad:
            raise NumericError(
                f"steps {self.done - self.bad + 1} to {self.done} had no finite gradient (loss {value:g}); "
                "lower the rate, or train in float32"
            )
        seconds = time.perf_counter() - begun
        rate = self.optimiser.param_groups[0]["lr"]
        told = {"loss": value, "norm": norm, "rate": rate, "seconds": seconds, "bad": float(self.bad)}
        return told | ({"images_per_second": self.rows / seconds} if self.rows else {})

    def gradient(self) -> tuple[float, float]:
        """The loss of a step, and the norm of its gradient, which the parameters then have."""
        self.optimiser.zero_grad(set_to_none=True)
        losses = []
        with self.ranks.together():
            for part in range(self.plan.accumulate):
                with nullcontext() if part == self.plan.accumulate - 1 else self.unsynced():
                    value = self.loss(self.done, part) / self.plan.accumulate
                    value.backward()
                losses.append(value.detach().float())
            norm = whole(torch.nn.utils.get_total_norm(gradients(self.model)))
        told = self.ranks.mean(torch.stack([sum(losses[1:], losses[0]), norm.float()]))
        mean, length = told.tolist()  # waits for a GPU, once
        return mean, length

    def save(self) -> None:
        """Write a checkpoint."""
        state = unparted(self.optimiser.state_dict(), self.ranks)
        groups = {"weights": gathered(weights(self.model), self.ranks)}
        if self.average is not None:
            groups["ema"] = gathered(self.average.state(), self.ranks)
        if self.ranks.first:
            groups["optimiser"], facts = flatten_optimiser(state)
            groups["random"], states = random_states()
            told = {"config": dict(self.config), "optimiser": facts, "random": states, "bad": self.bad}
            save(self.folder, self.done, groups, told, self.plan.keep)

    def resume(self) -> None:
        """Go on from the newest checkpoint in the folder, if there is one."""
        if not listed(self.folder):
            return
        found, own = latest(self.folder), weights(self.model)
        check_same(found.facts["config"], self.config, self.plan.free)
        check_same(
            *({name: list(x.shape) for name, x in group.items()} for group in (found.tensors["weights"], own))
        )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(like(value, found.tensors["weights"][name]))
        state = restore_optimiser(found.tensors["optimiser"], found.facts["optimiser"])
        every = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.optimiser.load_state_dict(parted(state, every))
        if self.average is not None:
            own = self.average.state()
            self.average.load({name: like(own[name], x) for name, x in found.tensors["ema"].items()})
        if self.ranks.first:
            set_random_states(found.tensors["random"], found.facts["random"])
        self.done, self.bad = found.step, found.facts["bad"]


def train(run: Run, *, watch: Watch | None = None, progress: bool = True) -> int:
    """Train until `plan.steps`, from the newest checkpoint in the folder if there is one; returns the steps.

    watch  called with the steps done and what is logged, on the first rank
    Raises InputError; NumericError, naming the steps, after `plan.most_bad` bad ones in a row, and for what
    is not finite in a checkpoint: the one before stays.
    """
    check(run.plan)
    with held(ready(run.folder)) if run.ranks.first else nullcontext():
        run.resume()
        return steps(run, watch, progress)


def steps(run: Run, watch: Watch | None, progress: bool) -> int:
    """The steps that are left."""
    plan, metrics, first = run.plan, Path(run.folder) / METRICS, run.ranks.first
    if first:
        with writing(run.folder):
            cut_metrics(metrics, run.done)
    with bar_of(run, progress and first) as bar:
        while run.done < plan.steps:
            told = run.step()
            shown = {"images/s": f"{told['images_per_second']:.3g}"} if run.rows else {}
            bar.set_postfix(loss=f"{told['loss']:.4g}", **shown, refresh=False)
            bar.update()
            last = run.done == plan.steps
            looks = plan.look_every and (run.done % plan.look_every == 0 or last)
            if run.look is not None and looks:
                told |= run.look(run.done)
            if first and (run.done % plan.log_every == 0 or last or looks or run.bad):
                told |= run.parts()
                log(metrics, run.done, told)
                if watch is not None:
                    watch(run.done, told)
            if run.done % plan.save_every == 0 or last:
                run.save()  # last, so that what is told of a step is not lost: it is told again
    return run.done


def bar_of(run: Run, progress: bool) -> Any:
    """A bar that shows the steps of a run."""
    from tqdm.auto import tqdm

    return tqdm(total=run.plan.steps, initial=run.done, desc="training", disable=not progress)


def check(plan: Plan) -> None:
    """Raises InputError for a plan that makes no sense."""
    for name in ("steps", "accumulate", "save_every", "log_every", "most_bad", "keep"):
        whole_number(name, getattr(plan, name), 10**12)
    number("clip", plan.clip, 0, 1e12)


def gradients(model: nn.Module) -> list[Tensor]:
    """Those that the trained parameters have."""
    return [p.grad for p in trained(model).values() if p.grad is not None]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters with gradients, and buffers."""
    return {name: p.detach() for name, p in trained(model).items()} | dict(model.named_buffers())


def log(path: Path, step: int, told: Mapping[str, float]) -> None:
    """Add a line of JSON; what is not finite is null there."""
    line = {"step": step} | {name: value if isfinite(value) else None for name, value in told.items()}
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def cut_metrics(path: Path, step: int) -> None:
    """Take out lines of steps that will be taken again."""
    if not path.is_file():
        return
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.endswith("}")]  # whole ones
        kept = [line for line in lines if json.loads(line)["step"] <= step]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what training wrote: {error!r}; move it away") from error
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), "utf-8")
    os.replace(temporary, path)
