"""The shape of a CLIP text encoder."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CLIPConfig:
    """Everything that distinguishes one CLIP text encoder from another. The defaults are ViT-L/14's."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072  # width inside the feed-forward layers
    vocab: int = 49408
    length: int = 77  # tokens a prompt is padded to
    activation: str = "quick_gelu"  # of the feed-forward layers: "quick_gelu" or "gelu"
    skip: int = 0  # how many of the last layers the hidden states do without
    final_norm: bool = True  # whether the hidden states are normed at the end
    projection: int | None = None  # width of the pooled text, where there is one
