"""Activations that are computed again in the backward pass instead of being kept (Chen et al. 2016, sec. 4).

memory of the activations of one block, not of all;        time: one more forward pass, about a third
"""

from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm.clip.text import Block as TextBlock
from ldm.layers import ResBlock
from ldm.unet.blocks import PlainAttention, TransformerBlock

BLOCKS = (ResBlock, TransformerBlock, PlainAttention, TextBlock)


def blocks_in(network: nn.Module) -> list[nn.Module]:
    """The blocks that a network is made of, none of them in another."""
    return [module for module in network.modules() if isinstance(module, BLOCKS)]


def recomputed(network: nn.Module) -> None:
    """Let the blocks of a network keep only what they are given; what they compute stays the same."""
    for block in blocks_in(network):
        block.forward = again(block.forward)


def again(forward):  # type: ignore[no-untyped-def]
    """A forward pass that keeps its arguments alone."""

    def kept(*arguments, **named):  # type: ignore[no-untyped-def]
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return kept
