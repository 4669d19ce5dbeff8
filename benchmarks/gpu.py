"""Attention, a guided step, a picture and its decoding on a GPU in bfloat16, packed; and diffusers'.

Weights are random, of the full width, and those of the peer: outputs are compared before anything is timed.
Nine minutes on an H200, most of which is torch.compile.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import gpu_attention
from benchmarks.gpu_clock import Clock, events
from benchmarks.gpu_peers import diffusers_unet, diffusers_vae, heard, our_unet, our_vae, pipeline
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
Call = Callable[[], Tensor]


class Goals(NamedTuple):
    """Of a guided step."""

    most: float  # seconds
    eager: float  # times as fast as diffusers
    compiled: float  # and as diffusers under torch.compile


class Place(NamedTuple):
    """Where and in what is measured."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16


def rows() -> Iterator[Row]:
    """All of it. Ends Python with a sentence where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit(
            "python -m benchmarks gpu measures a GPU, and torch finds none; nothing was measured"
        )
    place = Place()
    yield Row("device", None, note=device())
    with torch.no_grad():
        yield from gpu_attention.rows()
        for family, side, goals in ((SD1, 64, Goals(4e-3, 3.0, 1.4)), (SDXL, 128, Goals(27e-3, 1.8, 1.2))):
            unet, vae = diffusers_unet(family, *place), diffusers_vae(family, *place)
            if family is SDXL:
                yield from images(unet, vae, place)
            else:
                yield from decodings(family, vae, place)
            yield from steps(family, unet, side, goals, place)


def device() -> str:
    """The GPU, and what is under PyTorch on it."""
    cudnn = torch.backends.cudnn.version()
    return f"{torch.cuda.get_device_name()}; CUDA {torch.version.cuda}, cuDNN {cudnn}, {installed('triton')}"


def packed(family: Family, unet: nn.Module, vae: nn.Module) -> Model:
    """Our networks on the tensors of peers, ready to draw."""
    model = Model(family, our_unet(family, unet), our_vae(family, vae), (), ())
    kernels().prepare(model)
    return model


def steps(
    family: Family, peer: Any, side: int, goals: Goals, place: Place,
    clock: Clock = partial(events, calls=CALLS), compiling: bool = True,
) -> Iterator[Row]:  # fmt: skip
    """A guided step at one size, as one of many: of a text and a path that were heard before."""
    level, x = Schedule().at(500), noise((1, family.unet.in_channels, side, side), place, torch.float32)
    told = [heard(family, TOKENS, *place, seed) for seed in (1, 2)]
    said = [each for each, _ in told]
    small = packed(family, peer, diffusers_vae(family, *place)).unet

    def ours(unet: Any) -> Call:
        return partial(Denoiser(unet, family.prediction, said[1], said[0], SCALE, ts=[level.t]), x, level)

    more = [each for _, each in told]
    given = None if more[0] is None else {name: torch.cat([each[name] for each in more]) for name in more[0]}
    theirs = partial(peer_step, family, x, level, join(*said), given)
    calls = {"ours": ours(small), "plain": ours(our_unet(family, peer)), "eager": partial(theirs, peer)}
    name = f"guided step of {family.name}, {8 * side}²"
    note = agreed(name, calls)
    times = clock(calls, ROUNDS)
    note = f"plain {1e3 * times['plain']:.3g} ms; {note}"
    yield Row(name, times["ours"], most=goals.most, note=note)
    yield Row(f"{name}; diffusers", times["ours"], times["eager"], ratio=goals.eager)
    if not compiling:
        return
    for who, call in (
        ("diffusers", partial(theirs, torch.compile(peer, mode=COMPILED))),
        ("our plain UNet", ours(torch.compile(our_unet(family, peer), mode=COMPILED))),
    ):
        goal = goals.compiled if who == "diffusers" else None
        what = f"{name}; {who} under torch.compile"
        yield compiled(what, {"ours": calls["ours"], "theirs": call}, clock, goal)
        if family is not SD1:  # of SDXL ours would take minutes more
            return


def compiled(what: str, calls: dict[str, Call], clock: Clock, goal: float | None) -> Row:
    """A row of what torch.compile makes; without figures where it cannot."""
    try:
        note = agreed(what, calls)
        times = clock(calls, ROUNDS)
    except RuntimeError as error:
        return Row(what, None, note=f"not measured: torch.compile: {str(error).splitlines()[0]}")
    return Row(what, times["ours"], times["theirs"], ratio=goal, note=f"mode {COMPILED}; {note}")


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
    fast, plain = packed(family, diffusers_unet(family, *place), peer).vae, our_vae(family, peer)
    for side in sides:
        z = noise((1, family.vae.latent_channels, side, side), place, place.dtype)
        calls: dict[str, Call] = {
            "ours": partial(fast.decode, z * family.vae.scale),
            "plain": partial(plain.decode, z * family.vae.scale),
            "theirs": lambda z=z: peer.decode(z, return_dict=False)[0],  # type: ignore[misc]
        }
        name = f"decoding by {family.name}'s autoencoder, {family.vae.factor * side}²"
        note = agreed(name, calls)
        times = clock(calls, ROUNDS)
        note = f"plain {1e3 * times['plain']:.3g} ms; {note}"
        yield Row(name, times["ours"], times["theirs"], note=note)


def images(unet: nn.Module, vae: nn.Module, place: Place) -> Iterator[Row]:
    """A prompt to a picture, all of it, by the host's clock."""
    pipe = pipeline(SDXL, unet, vae, *place)
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


def noise(shape: tuple[int, ...], place: Place, dtype: torch.dtype) -> Tensor:
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
