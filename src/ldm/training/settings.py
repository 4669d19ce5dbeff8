"""What a run of training is told, field by field; `config.read` fills it from a TOML file and words."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from ldm.checks import number, one_of, texts, whole
from ldm.details import MOST_GUIDANCE
from ldm.errors import InputError
from ldm.request import MOST_IMAGES
from ldm.training.buckets import MOST_SIDE
from ldm.training.config import checked
from ldm.training.data import MOST_WORKERS
from ldm.training.distributed import WAYS
from ldm.training.framing import CROPS
from ldm.training.images import MOST_BAD, MOST_NUMBER
from ldm.training.lora import ATTENTION
from ldm.training.rates import rate

MOST = 10**9  # of what is counted
PRECISIONS = ("fp32", "bf16")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")  # ends of the names of shards
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Data:
    """What is trained on."""

    path: str = ""  # a folder of images as `folders` knows them, or tar shards "a/{000..041}.tar"
    size: int = 0  # pixels along a side; 0: the model's
    crop: str = "center"  # or "random"
    flip: float = 0.0  # how often left and right are exchanged
    buckets: int = 0  # step in pixels of sizes of all shapes, such as 64; 0: squares
    cache: str = ""  # folder where latents and text features are kept; "": they are computed each time
    workers: int = 0  # processes that read ahead, where there is no cache
    most_bad: int = MOST_BAD  # damaged images that are passed over


@dataclass(frozen=True)
class Sheet:
    """What is looked at now and then: pictures from fixed seeds, and the loss by time."""

    every: int = 0  # steps; 0: never
    prompts: tuple[str, ...] = ()  # one picture each; of models of classes their numbers, as texts
    steps: int = 0  # of the sampler; 0: the model's
    guidance: float = -1.0  # -1: the model's
    seed: int = 0
    images: int = 16  # whose loss is measured at all times; 0: none
    data: str = ""  # folder of these images; "": the first ones that are trained on


@dataclass(frozen=True)
class Settings:
    """What every run is told."""

    out: str = ""  # folder of the run: checkpoints, metrics.jsonl, sheets, and at the end the model
    model: str = ""  # what ldm.load takes, or a name of ldm.families(); "": the model in the package
    family: str = ""  # of a file that cannot tell
    fresh: tuple[str, ...] = ()  # networks that begin anew, from random weights
    seed: int = 0  # of all that is drawn
    data: Data = Data()
    sheet: Sheet = Sheet()
    steps: int = 1000  # of the optimiser
    batch: int = 4  # images of a step, on all ranks and in all parts together
    accumulate: int = 1  # parts of a batch, one after another
    rate: float = 1e-4  # peak of the learning rate
    schedule: str = "constant"  # of the rate: constant, linear or cosine
    warmup: int = 0  # steps until the peak
    betas: tuple[float, ...] = (0.9, 0.999)  # of AdamW
    decay: float = 0.01  # of the weights
    clip: float = 1.0  # most that the norm of a gradient may be; 0: anything
    ema: float = 0.0  # decay of the running mean of the weights; 0: none is kept
    most_bad: int = 10  # steps in a row without a finite gradient
    overfit: bool = False  # the same batch and noise in every step: the loss must fall towards 0
    # the fields from here on may change when a run goes on
    save_every: int = 500  # steps
    keep: int = 2  # checkpoints
    log_every: int = 10  # steps
    device: str = ""  # "": a GPU where there is one
    precision: str = "fp32"  # or bf16: autocast, the weights stay float32
    recompute: bool = False  # activations are computed again in the backward pass, to save memory
    spread: str = "ddp"  # or "fsdp", over the processes that torchrun starts
    saved: str = "fp32"  # type of the weights of the model at the end: fp32, fp16 or bf16
    tensorboard: bool = False  # whether metrics go there too; needs the extra `tensorboard`


FREE = (
    "out", "save_every", "keep", "log_every", "device", "precision", "recompute", "spread", "saved",
    "tensorboard",
    "data.cache", "data.workers", "sheet",
)  # fmt: skip


@dataclass(frozen=True)
class DiffusionSettings(Settings):
    """What a run of the diffusion model is told besides."""

    networks: tuple[str, ...] = ("unet",)  # that are trained: "unet", and "text_encoder", …, jointly
    prediction: str = ""  # eps, v or x0; "": the model's
    zero_snr: bool = False  # whether no signal is left at the last step; for v and x0
    weighting: str = "uniform"  # of the loss: uniform, min_snr, truncated_snr, p2 or debiased
    gamma: float = 5.0  # of min_snr
    times: str = "uniform"  # law of the steps t: uniform, stratified or logit_normal
    power: float = 1.0  # of the uniform number that t is made of; below 1: more of the high noise
    drop: float = 0.1  # share of images without their text, for guidance
    offset: float = 0.0  # strength of offset noise
    chunks: int = 1  # of 75 tokens that a caption may have; what is longer is cut


@dataclass(frozen=True)
class LoraSettings(DiffusionSettings):
    """What a run of a LoRA is told besides; `networks` has those that are changed."""

    rank: int = 8
    alpha: float = 0.0  # scale times rank; 0: the rank
    targets: str = ATTENTION  # pattern of the names of modules


@dataclass(frozen=True)
class InversionSettings(DiffusionSettings):
    """What a run of textual inversion is told besides; `networks` is not used."""

    token: str = ""  # the new word
    init: str = ""  # the word whose embedding it begins with
    vectors: int = 1  # places that it takes in a prompt
    template: str = "a photo of {}"  # what images without captions are told, with the word in place of {}


Own = TypeVar("Own", bound=Settings)


def at_home(settings: Own) -> Own:
    """The settings with `~` in paths of folders as the folder that it stands for. Raises InputError."""
    settings = checked(settings)
    data, sheet = settings.data, settings.sheet
    data = replace(data, path=home(data.path), cache=home(data.cache))
    return replace(settings, out=home(settings.out), data=data, sheet=replace(sheet, data=home(sheet.data)))


def home(path: str) -> str:
    """A path with `~` as the folder that it stands for."""
    return os.path.expanduser(path)


def check(settings: Settings) -> None:
    """Raises InputError for what makes no sense, naming the field."""
    for name in ("out", "data.path"):
        value: object = settings
        for part in name.split("."):
            value = getattr(value, part)
        if not value:
            raise InputError(f"{name} is missing; give it in the config, or as {name}=PATH")
    for name in ("steps", "batch", "accumulate", "most_bad", "save_every", "keep", "log_every"):
        whole(name, getattr(settings, name), MOST)
    whole("seed", settings.seed, MOST_NUMBER, least=0)
    for name, most in {"rate": 1e3, "decay": 1e3, "clip": 1e12, "ema": 1}.items():
        number(name, getattr(settings, name), 0, most)
    if len(settings.betas) != 2:
        raise InputError(f"betas must be two numbers, not {list(settings.betas)}")
    for beta in settings.betas:
        number("betas", beta, 0, 0.999999)
    if settings.batch % settings.accumulate:
        raise InputError(f"batch {settings.batch} is not a multiple of accumulate {settings.accumulate}")
    rate(settings.schedule, settings.steps, settings.warmup)
    one_of("precision", settings.precision, PRECISIONS)
    one_of("spread", settings.spread, WAYS)
    one_of("saved", settings.saved, tuple(DTYPES))
    check_data(settings.data)
    inside, root = Path(settings.out).resolve(), Path(settings.data.path).resolve()
    if root.is_dir() and (inside == root or root in inside.parents):
        raise InputError(
            f"out {settings.out} is in the folder of the data, {settings.data.path}; give another"
        )
    check_sheet(settings.sheet)


def check_data(data: Data) -> None:
    """Raises InputError for what is not there, naming the field; all else is found where it is read."""
    if not data.path.endswith(TARS) and not Path(data.path).is_dir():
        raise InputError(f"data.path: {data.path} is not a folder; give one with images, or tar shards")
    one_of("data.crop", data.crop, CROPS)
    number("data.flip", data.flip, 0, 1)
    for name, most in {"size": MOST_SIDE, "buckets": MOST_SIDE, "workers": MOST_WORKERS}.items():
        whole(f"data.{name}", getattr(data, name), most, least=0)
    whole("data.most_bad", data.most_bad, MOST_NUMBER, least=0)


def check_sheet(sheet: Sheet) -> None:
    """Raises InputError, naming the field: in the first step, not in the one that first draws."""
    whole("sheet.every", sheet.every, MOST, least=0)
    whole("sheet.images", sheet.images, 4096, least=0)
    whole("sheet.steps", sheet.steps, 1000, least=0)
    number("sheet.guidance", sheet.guidance, -1, MOST_GUIDANCE)
    whole("sheet.seed", sheet.seed, MOST_NUMBER - MOST_IMAGES, least=0)
    if len(texts("sheet.prompts", sheet.prompts)) > MOST_IMAGES:
        raise InputError(f"sheet.prompts has {len(sheet.prompts)}, more than {MOST_IMAGES}; give fewer")


def free(settings: Settings) -> Sequence[str]:
    """The fields that may change when a run goes on; a constant rate does not depend on how long it is."""
    return (*FREE, "steps") if settings.schedule == "constant" else FREE
