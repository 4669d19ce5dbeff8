"""The shapes of what turns a prompt into tokens that the UNet attends to."""

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


@dataclass(frozen=True)
class BERTConfig:
    """Everything that distinguishes one BERT of LDM from another. The defaults are LDM's text-to-image."""

    width: int = 1280
    layers: int = 32
    heads: int = 8
    head_dim: int = 64
    vocab: int = 30522
    length: int = 77  # tokens a prompt is padded to, with id 0


@dataclass(frozen=True)
class ClassConfig:
    """An embedding of classes. The defaults are LDM's ImageNet."""

    width: int = 512
    classes: int = 1001
    empty: int | None = 1000  # the class that stands for none, for guidance; None: there is no such class
