"""A guided step of Stable Diffusion 1's UNet, and its decoder, on a CPU in float32, packed; and diffusers'.

Weights are random, of the full width, and those of the peer: outputs are compared before anything is timed.
The packed step hears text and noise level as a pipeline's steps do, from layers that spoke once a path.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.peers import diffusers_unet, diffusers_vae, our_unet, our_vae
from benchmarks.table import Row
from benchmarks.timing import medians
from benchmarks.unet import TOKENS
from ldm.families import SD1
from ldm.once import Once
from ldm.packed import pack

STEPS = {32: (5, 1.6), 64: (3, 1.25)}  # latent pixels along a side: rounds, and the goal
DECODED = {32: (5, 1.3), 64: (3, 1.3)}


def rows() -> Iterator[Row]:
    """The UNet at 256 and 512 pixels, then the decoder."""
    yield from steps()
    yield from decodings()


def steps() -> Iterator[Row]:
    """A guided step: the UNet on a batch of two."""
    peer = diffusers_unet(SD1)
    plain, fast = our_unet(SD1, peer), our_unet(SD1, peer)
    pack(fast)
    for side, (rounds, goal) in STEPS.items():
        generator = torch.Generator().manual_seed(side)
        x = torch.randn(2, 4, side, side, generator=generator)
        context = torch.randn(2, TOKENS, SD1.unet.context_dim, generator=generator)
        t = torch.tensor([500.0, 500.0])
        contestants: dict[str, Callable[[], Tensor]] = {
            "ours": partial(fast, x, Once(fast.embed(t)), Once(context)),
            "plain": partial(plain, x, t, context),
            "theirs": partial(first, partial(peer, x, t, context, return_dict=False)),
        }
        yield row(f"guided step of SD 1's UNet, {8 * side}²", rounds, goal, contestants)


def decodings() -> Iterator[Row]:
    """A latent to a picture."""
    peer = diffusers_vae(SD1)
    plain, fast = our_vae(SD1, peer), our_vae(SD1, peer)
    pack(fast)
    for side, (rounds, goal) in DECODED.items():
        z = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(side))
        contestants: dict[str, Callable[[], Tensor]] = {
            "ours": partial(fast.decode, z * SD1.vae.scale),
            "plain": partial(plain.decode, z * SD1.vae.scale),
            "theirs": partial(first, partial(peer.decode, z, return_dict=False)),
        }
        yield row(f"decoding by SD 1's autoencoder, {8 * side}²", rounds, goal, contestants)


def first(call: Callable[[], tuple[Tensor, ...]]) -> Tensor:
    """The first of what a call gives."""
    return call()[0]


def row(what: str, rounds: int, goal: float, contestants: dict[str, Callable[[], Tensor]]) -> Row:
    """One line of the table. Raises AssertionError where the three differ."""
    with torch.no_grad():
        outs = {name: each() for name, each in contestants.items()}
        seconds = medians(contestants, rounds, warm_up=0)
    error = {
        name: float((out - outs["plain"]).abs().max() / outs["plain"].abs().max())
        for name, out in outs.items()
    }
    if not max(error.values()) < 1e-4:
        raise AssertionError(f"{what}: outputs differ by {error}: not the same function")
    note = (
        f"packed; plain {seconds['plain']:.3g} s; packed is plain to {error['ours']:.0e}; "
        f"{torch.get_num_threads()} threads"
    )
    return Row(what, seconds["ours"], seconds["theirs"], ratio=goal, note=note)
