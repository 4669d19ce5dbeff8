"""What the network is told besides the latent and its level: tokens, a vector, channels, a label."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.circle import slerp_rows
from ldm.clip import ClassEmbedder, TextEncoder
from ldm.errors import CheckpointError
from ldm.family import Family
from ldm.unet.embeddings import sinusoid


class Conditioning(NamedTuple):
    """What the UNet hears and sees besides the latent; row i belongs to image i."""

    context: Tensor | None = None  # [b m c'] tokens for cross-attention
    vector: Tensor | None = None  # [b c''] of the whole picture, added to the noise level
    beside: Tensor | None = None  # [b c h w] channels beside the latent's
    label: Tensor | None = None  # [b] added to the noise level

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """In the dtype of a network; labels stay whole numbers."""
        context, vector, beside = (x if x is None else x.to(dtype) for x in self[:3])
        return Conditioning(context, vector, beside, self.label)


def encode_ids(ids: Tensor, encoder: Any, skip: int = 0) -> tuple[Tensor, Tensor | None]:
    """The hidden states [b m c'] of ids [b m], and the pooled text [b c''] where the encoder has one.

    skip  of CLIP's last layers, how many are left out besides those that the family leaves out
    Raises CheckpointError for ids that the encoder does not know.
    """
    if not encoder.tokens.knows(ids):
        raise CheckpointError(
            f"the tokenizer gives ids up to {int(ids.max())}, but the text encoder knows "
            f"{encoder.config.vocab} tokens and {len(encoder.tokens.added)} added ones; "
            "they belong to different models"
        )
    ids = ids.to(encoder.tokens.weight.device)
    if isinstance(encoder, TextEncoder):
        return encoder.pooled(ids, skip)
    return encoder(ids), None


def encode_classes(embedder: ClassEmbedder, classes: Sequence[Any]) -> Tensor:
    """Class numbers as tokens [b 1 c']."""
    return embedder(torch.tensor(classes, device=embedder.classes.weight.device))


def tell(pooled: Tensor, numbers: Sequence[float], family: Family) -> Tensor:
    """The vector of SDXL: the pooled text, and each number as a sinusoid (Podell et al. 2023, sec. 2.2)."""
    values = torch.tensor(numbers, dtype=torch.float32, device=pooled.device)
    waves = sinusoid(values, family.vector_part).flatten().expand(len(pooled), -1)
    return torch.cat([pooled, waves.to(pooled.dtype)], dim=1)


def blended(a: Conditioning, b: Conditioning, shares: Sequence[float], pooled: int) -> Conditioning:
    """Row i is shares[i] of the way from a's to b's: each token on a circle of its own, and the pooled text.

    pooled  how many numbers of the vector are that; the others, of sizes, are the same in both
    """
    context = vector = None
    if a.context is not None and b.context is not None:
        context = slerp_rows(a.context, b.context, shares, dim=-1)
    if a.vector is not None and b.vector is not None:
        text = slerp_rows(a.vector[:, :pooled], b.vector[:, :pooled], shares, dim=-1)
        vector = torch.cat([text, a.vector[:, pooled:]], dim=1)
    return a._replace(context=context, vector=vector)


def join(*conditionings: Conditioning) -> Conditioning:
    """One batch of several, each of which has the same fields."""
    return Conditioning(*(None if x[0] is None else torch.cat(x) for x in zip(*conditionings, strict=True)))
