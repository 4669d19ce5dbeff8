"""One training loop for both stages: seeded by the step, resumable bit for bit, safe to interrupt.

    lr(p) = peak * min(1, (step + 1) / warm-up) * (1 + cos(pi p)) / 2,    p = progress in [0, 1]

Progress counts steps or, on a clock, minutes. What a step draws depends on (seed, step) alone, so a run that
stops and goes on makes the same steps as one that never did; on a clock only the learning rate may differ.
"""

import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from muon import Muon, hidden
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Part = Callable[[], tuple[Tensor, dict[str, float]]]  # -> what to minimise, what to write down
Loss = Callable[[int], list[Part]]  # step -> equal parts of its batch, each computed in a thread of its own


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train."""

    steps: int | None = None  # stop after so many steps ...
    minutes: float | None = None  # ... or so many minutes, whichever is given
    lr: float = 1e-3  # the peak
    warmup: int = 100  # steps
    ema: float = 0.0  # decay of the running mean of the weights; 0: none kept
    muon: bool = False  # for the hidden layers' matrices, instead of AdamW
    save_seconds: float = 60.0  # between checkpoints
    log_every: int = 50  # steps

    def progress(self, step: int, seconds: float) -> float:
        """0 at the beginning, 1 when done."""
        if self.steps is not None:
            return step / self.steps
        if self.minutes is not None:
            return seconds / (60 * self.minutes)
        raise ValueError("a plan needs steps or minutes")

    def rate(self, step: int, seconds: float) -> float:
        """The learning rate of a step."""
        fade = (1 + math.cos(math.pi * min(1.0, self.progress(step, seconds)))) / 2
        return self.lr * min(1.0, (step + 1) / self.warmup) * fade


@dataclass
class State:
    """All that a step changes."""

    net: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    ema: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0


def begin(net: nn.Module, plan: Plan) -> State:
    """A state before its first step."""
    inner = hidden(net) if plan.muon else []
    ids = {id(p) for p in inner}
    others = [p for p in net.parameters() if id(p) not in ids]
    adam = torch.optim.AdamW(others, lr=plan.lr, betas=(0.9, 0.99), weight_decay=0.01)
    ema = {name: p.detach().clone() for name, p in net.named_parameters()} if plan.ema else {}
    return State(net, (adam, Muon(inner, plan.lr)) if inner else (adam,), ema)


def train(state: State, loss: Loss, plan: Plan, checkpoint: Path, log: Path) -> State:
    """Train until the plan is done, going on from `checkpoint` where there is one."""
    if checkpoint.exists():
        load_state(state, checkpoint)
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    with ThreadPoolExecutor() as pool:
        while plan.progress(state.step, state.seconds) < 1:
            notes = _step(state, loss, plan, pool)
            state.seconds = time.monotonic() - started
            if state.step % plan.log_every == 0:
                said = {"stage": checkpoint.stem, "step": state.step, "seconds": round(state.seconds, 1)}
                _write(log, said | notes)
            if time.monotonic() - saved > plan.save_seconds:
                save_state(state, checkpoint)
                saved = time.monotonic()
    save_state(state, checkpoint)
    return state


def _step(state: State, loss: Loss, plan: Plan, pool: Executor) -> dict[str, float]:
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(state.step, state.seconds)
        optimizer.zero_grad(set_to_none=True)
    notes = _backward(loss(state.step), pool)
    nn.utils.clip_grad_norm_(state.net.parameters(), 1.0)
    for optimizer in state.optimizers:
        optimizer.step()
    state.step += 1
    if plan.ema:
        decay = min(
            plan.ema, (1 + state.step) / (10 + state.step)
        )  # a young mean forgets its random beginning
        with torch.no_grad():
            torch._foreach_lerp_(list(state.ema.values()), list(state.net.parameters()), 1 - decay)
    return notes


def _backward(parts: list[Part], pool: Executor) -> dict[str, float]:
    """Add up the gradients of the mean of all parts; returns the mean of their notes.

    Two threads of one core each wait for one another once a step, not at every operation, which is faster
    beside other work. Two addends have one sum in either order, so it is the same every time.
    """

    def run(part: Part) -> dict[str, float]:
        value, notes = part()
        (value / len(parts)).backward()
        return notes

    notes = list(pool.map(run, parts))
    return {name: round(sum(each[name] for each in notes) / len(notes), 5) for name in notes[0]}


def save_state(state: State, path: Path) -> None:
    """Everything in one safetensors file, written beside its place and then moved there."""
    tensors = {f"net.{name}": p.detach() for name, p in state.net.named_parameters()}
    tensors |= {f"ema.{name}": p for name, p in state.ema.items()}
    for k, optimizer in enumerate(state.optimizers):
        for i, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{k}.{i}.{name}": value for name, value in slots.items()}
    meta = {"step": state.step, "seconds": state.seconds}
    tensors = {name: value.contiguous().cpu() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    save_file(tensors, beside, metadata={"state": json.dumps(meta)})
    os.replace(beside, path)


def load_state(state: State, path: Path) -> None:
    """Put a saved state back into `state`."""
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    state.net.load_state_dict(_under("net.", tensors))
    for name, value in _under("ema.", tensors).items():
        state.ema[name].copy_(value)
    for k, optimizer in enumerate(state.optimizers):
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(f"optimizer.{k}.", tensors).items():
            i, slot = name.split(".")
            slots.setdefault(int(i), {})[slot] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": slots, "param_groups": groups})
    state.step, state.seconds = meta["step"], meta["seconds"]


def weights(path: Path, which: str) -> dict[str, Tensor]:
    """The weights in a checkpoint: which is 'net' (the last) or 'ema' (their running mean)."""
    with safe_open(path, "pt") as file:
        return {
            name.removeprefix(f"{which}."): file.get_tensor(name)
            for name in sorted(file.keys())
            if name.startswith(f"{which}.")
        }


def generators(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The randomness of one step."""
    rng = np.random.default_rng((seed, step))
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _write(log: Path, notes: dict[str, object]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(json.dumps(notes) + "\n")
