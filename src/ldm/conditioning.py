"""Prompts to what the network is conditioned on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.clip import TextEncoder, Tokenizer
from ldm.errors import CheckpointError


class Conditioning(NamedTuple):
    """What the UNet hears besides the latent and its level; row i belongs to image i."""

    context: Tensor  # [b m c'] tokens for cross-attention

    def repeat(self, times: int) -> "Conditioning":
        """Every row `times` times, in place: a b -> a a b b."""
        return Conditioning(self.context.repeat_interleave(times, dim=0))


def encode_text(tokenizer: Tokenizer, encoder: TextEncoder, prompts: Sequence[str]) -> Conditioning:
    """The text encoder's hidden states of prompts; context [b m c'].

    Raises CheckpointError if the tokenizer knows more tokens than the encoder.
    """
    ids = tokenizer(prompts)
    if (top := int(ids.max())) >= encoder.config.vocab:
        raise CheckpointError(
            f"the tokenizer gives id {top}, but the text encoder knows {encoder.config.vocab} tokens; "
            "they belong to different models"
        )
    return Conditioning(encoder(ids.to(encoder.tokens.weight.device)))


def join(*conditionings: Conditioning) -> Conditioning:
    """One batch of several."""
    return Conditioning(torch.cat([c.context for c in conditionings]))
