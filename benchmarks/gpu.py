"""Attention, a guided step, a picture and its decoding on a GPU in bfloat16, packed; and diffusers'.

Weights are random, of the full width, and those of the peer: outputs are compared before anything is timed.
In all networks channels lie last, and cuDNN tries which of its convolutions are the fastest.

Nine minutes on an H200, most of which is torch.compile. Where a GPU is lent for a shorter time, the parts are
benchmarks of their own: `gpu-attention`, `gpu-steps` and `gpu-compiled`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import gpu_attention
from benchmarks.gpu_clock import Clock, events, tried
from benchmarks.peers import (
    ON_GPU,
    Place,
    diffusers_unet,
    diffusers_vae,
    heard,
    our_unet,
    our_vae,
    pipeline,
)
from benchmarks.table import Row, installed
from benchmarks.timing import medians
from ldm import Denoiser, Schedule
from ldm.conditioning import Conditioning, join
from ldm.families import SD1, SDXL, SDXL_TURBO
from ldm.family import Family
from ldm.model import Model, kernels
from ldm.pipeline import Pipeline

TOKENS = 77
SCALE = 2.0  # of guidance: more would take no longer, but make more of roundings
ROUNDS, CALLS = 9, 5
APART = 0.05  # |a - b| / |b| of two ways through a UNet in bfloat16
COMPILED = "reduce-overhead"  # torch.compile with graphs of its own
UNFUSED = ", without fuse_qkv_projections"  # of the peer
STEPS: Clock = partial(events, calls=CALLS)
Call = Callable[[], Tensor]


class Goals(NamedTuple):
    """Of a guided step."""

    most: float  # seconds
    eager: float  # times as fast as diffusers
    compiled: float  # and as diffusers under torch.compile


SIZES = ((SD1, 64, Goals(4e-3, 3.0, 1.4)), (SDXL, 128, Goals(27e-3, 1.8, 1.2)))  # pixels of a latent's side


def rows(*parts: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """Some of the parts that follow. Ends Python with a sentence where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "python -m benchmarks gpu measures a GPU, and torch finds none; nothing was measured"
        )
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield Row("device", None, note=device())
        with torch.no_grad():
            for part in parts:
                yield from part()
    finally:
        torch.backends.cudnn.benchmark = before


def attention() -> Iterator[Row]:
    """Attention by itself."""
    yield from gpu_attention.rows()


def eager() -> Iterator[Row]:
    """Steps, decodings and pictures, without torch.compile."""
    place = ON_GPU
    for family, side, goals in SIZES:
        unet, vae = diffusers_unet(family, place), diffusers_vae(family, place)
        if family is SDXL:
            yield from images(unet, vae, place)
        else:
            yield from decodings(family, vae, place)
        yield from steps(Step(family, side, place), unet, goals)


def compiled() -> Iterator[Row]:
    """Steps, and peers under torch.compile."""
    place = ON_GPU
    for family, side, goals in SIZES:
        yield from compiled_steps(Step(family, side, place), diffusers_unet(family, place), goals)


def device() -> str:
    """The GPU, and what is under PyTorch on it."""
    cudnn = torch.backends.cudnn.version()
    return f"{torch.cuda.get_device_name()}; CUDA {torch.version.cuda}, cuDNN {cudnn}, {installed('triton')}"


def packed(family: Family, unet: nn.Module, vae: nn.Module) -> Model:
    """Our networks on the tensors of peers, ready to draw."""
    model = Model(family, our_unet(family, unet), our_vae(family, vae), (), ())
    kernels().prepare(model)
    return model


class Step:
    """A guided step at one size, as one of many: of a text and a path that were heard before."""

    def __init__(self, family: Family, side: int, place: Place):
        self.family, self.place = family, place
        self.what = f"guided step of {family.name}, {8 * side}²"
        self.level, self.x = Schedule().at(500), noise((1, family.unet.in_channels, side, side), place)
        told = [heard(family, TOKENS, place, seed) for seed in (1, 2)]
        (self.uncond, one), (self.cond, other) = told
        self.more = None if one is None else {name: torch.cat([one[name], other[name]]) for name in one}

    def ours(self, unet: Any) -> Call:
        """By a UNet of ours."""
        ts, prediction = [self.level.t], self.family.prediction
        return partial(Denoiser(unet, prediction, self.cond, self.uncond, SCALE, ts=ts), self.x, self.level)

    def packed(self, peer: Any) -> Call:
        """By ours on a peer's tensors, packed."""
        return self.ours(packed(self.family, peer, diffusers_vae(self.family, self.place)).unet)

    def theirs(self, peer: Any) -> Call:
        """By diffusers' UNet."""
        said = join(self.uncond, self.cond)
        return partial(peer_step, self.family, self.x, self.level, said, self.more, peer)


def steps(step: Step, peer: Any, goals: Goals, clock: Clock = STEPS) -> Iterator[Row]:
    """Packed; and plain, and diffusers', as they are."""
    plain = our_unet(step.family, peer)
    calls = {"ours": step.packed(peer), "plain": step.ours(plain), "eager": step.theirs(peer)}

    def measured() -> Iterator[Row]:
        note = agreed(step.what, calls)
        times = clock(calls, ROUNDS)
        note = f"plain {1e3 * times['plain']:.3g} ms; {note}"
        yield Row(step.what, times["ours"], most=goals.most, note=note)
        yield Row(f"{step.what}; diffusers", times["ours"], times["eager"], ratio=goals.eager)

    yield from tried(step.what, measured())


def compiled_steps(step: Step, peer: Any, goals: Goals, clock: Clock = STEPS) -> Iterator[Row]:
    """Packed; and diffusers' under torch.compile, and for SD 1 our plain UNet: of SDXL it takes minutes."""
    ours, who = step.packed(peer), f"{step.what}; diffusers under torch.compile"
    theirs = step.theirs(torch.compile(peer, mode=COMPILED))
    yield from against(who, {"ours": ours, "theirs": theirs}, clock, goals.compiled, UNFUSED)
    if step.family is SD1:
        who = f"{step.what}; our plain UNet under torch.compile"
        theirs = step.ours(torch.compile(our_unet(step.family, peer), mode=COMPILED))
        yield from against(who, {"ours": ours, "theirs": theirs}, clock)


def against(
    what: str, calls: dict[str, Call], clock: Clock, goal: float | None = None, how: str = ""
) -> Iterator[Row]:
    """A row of what torch.compile makes; without figures where it cannot."""

    def measured() -> Iterator[Row]:
        note = agreed(what, calls)
        times = clock(calls, ROUNDS)
        yield Row(what, times["ours"], times["theirs"], ratio=goal, note=f"mode {COMPILED}{how}; {note}")

    try:
        yield from tried(what, measured())
    except RuntimeError as error:
        yield Row(what, None, note=f"not measured: torch.compile: {str(error).splitlines()[0]}")


def peer_step(family: Family, x: Tensor, level: Any, said: Conditioning, more: Any, peer: Any) -> Tensor:
    """The same of diffusers' UNet: x0 [b c h w]."""
    t = torch.full((2 * len(x),), level.t, dtype=torch.float32, device=x.device)
    out = peer(
        x.repeat(2, 1, 1, 1).to(said.context.dtype), t, encoder_hidden_states=said.context,  # type: ignore[union-attr]
        added_cond_kwargs=more, return_dict=False,
    )[0].float()  # fmt: skip
    uncond, cond = out.chunk(2)
    return family.prediction.x0(x, uncond + SCALE * (cond - uncond), level)


def decodings(
    family: Family, peer: Any, place: Place, sides: tuple[int, ...] = (64, 128), clock: Clock = events
) -> Iterator[Row]:
    """A latent to a picture."""
    fast, plain = packed(family, diffusers_unet(family, place), peer).vae, our_vae(family, peer)
    for side in sides:
        z = noise((1, family.vae.latent_channels, side, side), place, place.dtype)
        calls: dict[str, Call] = {
            "ours": partial(fast.decode, z * family.vae.scale),
            "plain": partial(plain.decode, z * family.vae.scale),
            "theirs": lambda z=z: peer.decode(z, return_dict=False)[0],  # type: ignore[misc]
        }
        name = f"decoding by {family.name}'s autoencoder, {family.vae.factor * side}²"
        yield from tried(name, decoding(name, calls, clock))


def decoding(what: str, calls: dict[str, Call], clock: Clock) -> Iterator[Row]:
    """A row of one size."""
    note = agreed(what, calls)
    times = clock(calls, ROUNDS)
    note = f"plain {1e3 * times['plain']:.3g} ms; {note}"
    yield Row(what, times["ours"], times["theirs"], note=note)


def images(unet: nn.Module, vae: nn.Module, place: Place) -> Iterator[Row]:
    """A prompt to a picture, all of it, by the host's clock."""
    pipe = pipeline(SDXL, unet, vae, place)
    pipe.pack()
    turbo = Pipeline(SDXL_TURBO, pipe.unet, pipe.vae, pipe.text_encoders, pipe.tokenizers)
    yield image(turbo, {"num_inference_steps": 1, "height": 512, "width": 512}, 12e-3)
    yield image(pipe, {"num_inference_steps": 30, "height": 1024, "width": 1024}, 0.85)


def image(pipe: Pipeline, options: dict[str, int], most: float) -> Row:
    """A row of one picture."""

    def call() -> None:
        pipe("a photo of a cat", seed=1, output_type="pt", progress=False, **options)
        if pipe.device.type == "cuda":
            torch.cuda.synchronize()

    seconds = medians({"ours": call}, ROUNDS, warm_up=3)["ours"]
    what = f"image of {pipe.family.name}, {options['height']}², steps: {options['num_inference_steps']}"
    return Row(what, seconds, most=most, note="with text encoders and noise from the host; as a tensor")


def noise(shape: tuple[int, ...], place: Place, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of unit variance, the same each time."""
    generator = torch.Generator(place.device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=place.device, dtype=dtype)


def agreed(what: str, calls: dict[str, Call]) -> str:
    """How far they are from the last. Raises AssertionError where that is too far."""
    outs = {name: call().float() for name, call in calls.items()}
    *others, last = outs
    errors = {name: float((outs[name] - outs[last]).norm() / outs[last].norm()) for name in others}
    if not max(errors.values()) < APART:
        raise AssertionError(f"{what}: outputs differ by {errors}: not the same function")
    return f"from {last}'s output: " + ", ".join(f"{name} {error:.0e}" for name, error in errors.items())
