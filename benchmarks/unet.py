"""One forward pass of Stable Diffusion 1's UNet in float32, ours and diffusers', on the same weights.

The weights are random and shared in memory; that both compute the same function is checked.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import diffusers_unet, our_unet
from benchmarks.table import Row
from benchmarks.timing import medians
from ldm.families import SD1
from ldm.unet import UNet

ROUNDS = {32: 7, 64: 5}  # by latent pixels along a side: images of 256 and of 512 pixels
TOKENS = 77


def rows(side: int = 32) -> Iterator[Row]:
    """The time of one pass on a latent [1 4 side side]."""
    peer = diffusers_unet(SD1)
    yield row(our_unet(SD1, peer), peer, side)


def row(mine: UNet, peer: Any, side: int) -> Row:
    """Both networks on one latent [1 4 side side]."""
    generator = torch.Generator().manual_seed(side)
    x = torch.randn(1, SD1.unet.in_channels, side, side, generator=generator)
    context = torch.randn(1, TOKENS, SD1.unet.context_dim, generator=generator)
    t = torch.tensor([500.0])
    contestants: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: mine(x, t, context),
        "theirs": lambda: peer(x, t, context, return_dict=False)[0],
    }
    with torch.no_grad():
        ours, theirs = contestants["ours"](), contestants["theirs"]()
        seconds = medians(contestants, ROUNDS[side], warm_up=0)
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    if not error < 1e-4:  # float32 through some hundred layers
        raise AssertionError(
            f"the two UNets differ by {error:.1e} of the largest output: not the same function"
        )
    note = f"outputs agree to {error:.0e}; {torch.get_num_threads()} threads"
    return Row(
        f"UNet of SD 1, latents {side}×{side}", seconds["ours"], seconds["theirs"], ratio=1.0, note=note
    )
