"""A run of training from its settings: the model, its data, the loop, and what is left in the run's folder.

out/step-…           checkpoints, to go on from; out/metrics.jsonl; out/sheets/step-….png; out/card.md
out/model            the model at the end, with the averaged weights: a folder, or one file, for ldm.load
out/lora-….safetensors, out/word.safetensors        what a LoRA or a new word is instead
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ldm
from ldm.checkpoint.save import check_replaceable
from ldm.checkpoint.written import write as configs_of
from ldm.clip import TextEncoder
from ldm.errors import CheckpointError, InputError
from ldm.families import FAMILIES
from ldm.family import Family
from ldm.model import Origin
from ldm.pipeline import Pipeline
from ldm.ranks import Ranks
from ldm.training.card import CARD, SCORES, read_scores
from ldm.training.config import plain
from ldm.training.distributed import gathered, part_again, spread, unsynced
from ldm.training.ema import Average, trained
from ldm.training.fresh import begin_anew, from_nothing, like
from ldm.training.loop import Look, Plan, Run, Watch, train
from ldm.training.places import ready
from ldm.training.rates import rate
from ldm.training.recompute import blocks_in, recomputed
from ldm.training.rows import Rows, loss_of
from ldm.training.settings import DTYPES, Settings, check, free


def opened(settings: Settings, ranks: Ranks) -> Pipeline:
    """The model that a run begins with, if its settings make sense and its folder can be written."""
    check(settings)
    check_divides(settings, ranks)
    check_files([Path(settings.out) / CARD])
    if ranks.first:
        ready(settings.out)
        read_scores(Path(settings.out) / SCORES)
    pipe = model_of(settings, ranks)
    path, layout = target(settings, pipe.family)
    if layout == "diffusers":
        check_replaceable(path)
    return pipe


def check_files(paths: Iterable[Path]) -> None:
    """Raises InputError for folders where files are to be written at the end."""
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder, where a file will be written; move it away")


def check_divides(settings: Settings, ranks: Ranks) -> None:
    """Raises InputError where ranks would have unlike parts of a batch."""
    if settings.batch % (settings.accumulate * ranks.size):
        raise InputError(
            f"batch {settings.batch} cannot be shared equally by {ranks.size} processes in accumulate "
            f"{settings.accumulate} parts; give a multiple of {settings.accumulate * ranks.size}"
        )


def model_of(settings: Settings, ranks: Ranks) -> Pipeline:
    """The model that a run begins with, in float32. Raises as `ldm.load`, and InputError."""
    if family := family_of(settings):
        pipe = from_nothing(family, settings.seed)
    else:
        pipe = ldm.load(settings.model or None, family=settings.family or None, copy=True)
    begin_anew(pipe, settings.fresh, settings.seed)
    pipe.origin = Origin()  # what a file said of weights that will be others
    # fsdp brings each block to its device in parts: the whole may not fit there
    return pipe if settings.spread == "fsdp" else pipe.to(ranks.device)


def family_of(settings: Settings) -> Family | None:
    """The family of which a model is made from nothing; None where one is loaded."""
    return None if Path(settings.model).exists() else FAMILIES.get(settings.model)


def begun(
    objective: nn.Module,
    pipe: Pipeline,
    rows: Rows,
    settings: Settings,
    ranks: Ranks,
    make: Callable[[], torch.optim.Optimizer] | None = None,
) -> Run:
    """A run before its first step.

    objective  as `module` of `loss_of`
    make       the optimiser, once the model is spread over ranks; None: AdamW as the settings have it
    """
    for part in (each for encoder in pipe.text_encoders for each in unheard(encoder)):
        part.requires_grad_(False)
    networks = [network for network in pipe.networks() if trained(network)]
    for network in networks if settings.recompute else ():
        recomputed(network)
    units = {network: blocks_in(network) for network in networks}
    module = spread(objective, ranks, settings.spread, units)
    if settings.spread == "fsdp":
        for network in pipe.networks():
            if network not in networks:
                network.to(ranks.device)
    plan = Plan(
        settings.steps, rate(settings.schedule, settings.steps, settings.warmup), settings.accumulate,
        settings.clip, settings.save_every, settings.log_every, settings.sheet.every, settings.most_bad,
        settings.keep, tuple(free(settings)),
    )  # fmt: skip
    average = Average(objective, settings.ema) if settings.ema else None
    loss = loss_of(module, rows, settings, ranks)
    optimiser = make() if make else adamw(trained(objective).values(), settings)
    config = plain(settings)
    if rows.images:  # the same images are to be there when the run goes on
        config["data"] |= {"images": rows.images, "names and captions": rows.digest}
    return Run(
        objective, optimiser, loss, plan, Path(settings.out), config, average, ranks,
        partial(unsynced, module), rows=settings.batch,
    )  # fmt: skip


def unheard(encoder: nn.Module) -> list[nn.Module]:
    """What neither the hidden states nor the pooled text of a text encoder depend on."""
    if not isinstance(encoder, TextEncoder) or encoder.pool is not None:
        return []
    rest: list[nn.Module] = list(encoder.blocks)[encoder.heard(0) :]
    return rest if encoder.config.final_norm else [*rest, encoder.norm]


def adamw(parameters: Iterable[Any], settings: Settings) -> torch.optim.Optimizer:
    """AdamW of parameters, or of groups of them (Loshchilov & Hutter 2019, alg. 2)."""
    first, second = settings.betas
    return torch.optim.AdamW(
        list(parameters), lr=settings.rate, betas=(first, second), weight_decay=settings.decay, fused=True
    )


def followed(run: Run, settings: Settings, look: Look | None, watch: Watch | None, progress: bool) -> None:
    """Train to the end. `look` sees the averaged weights, which the model has after it."""

    def averaged(step: int) -> Mapping[str, float]:
        assert look is not None
        with run.average.swapped(run.model) if run.average else nullcontext():
            told = look(step)
            part_again(run.model)
            return told

    run.look = averaged if look else None
    with boards(settings, run.ranks) as board:

        def watched(step: int, told: Mapping[str, float]) -> None:
            for each in (board, watch):
                if each is not None:
                    each(step, told)

        train(run, watch=watched, progress=progress)
    if run.average is not None:
        run.average.copy_to(run.model)


@contextmanager
def boards(settings: Settings, ranks: Ranks) -> Iterator[Watch | None]:
    """What writes metrics for TensorBoard, if that is asked for. Raises InputError where it is missing."""
    if not settings.tensorboard or not ranks.first:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard=true needs the extra: pip install 'ldm[tensorboard]'") from error
    with SummaryWriter(Path(settings.out) / "tensorboard") as writer:
        yield lambda step, told: [writer.add_scalar(name, value, step) for name, value in told.items()]


def target(settings: Settings, family: Family) -> tuple[Path, str]:
    """Where the model is written, and in which layout: a folder, or one file for families without folders."""
    try:
        configs_of(family)
    except CheckpointError:
        return Path(settings.out) / "model.safetensors", "original"
    return Path(settings.out) / "model", "diffusers"


def written(pipe: Pipeline, settings: Settings, ranks: Ranks) -> Path:
    """The model as `ldm.load` takes it, written by the first rank."""
    path, layout = target(settings, pipe.family)
    states = {name: gathered(each.state_dict(), ranks) for name, each in pipe.named_networks().items()}
    if ranks.first:
        if settings.spread == "fsdp":  # its own tensors are parts
            pipe = like(pipe)
            for name, network in pipe.named_networks().items():
                network.load_state_dict(states[name])
        ldm.save(pipe, path, layout, DTYPES[settings.saved])
    return path
