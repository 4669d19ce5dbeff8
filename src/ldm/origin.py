"""Where a pipeline's weights came from."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Dialect(NamedTuple):
    """Which of several names in use a source had."""

    text_prefixes: tuple[str, ...] = ()  # of the text encoders; none: the layout's usual ones
    old_vae_attention: bool = False  # the names of diffusers before 0.17


@dataclass(frozen=True)
class Origin:
    """What a file said besides the weights in use, kept so that saving gives back every bit."""

    layout: str = ""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)  # in the file, by network/our key
    extras: dict[str, Tensor] = field(default_factory=dict)  # tensors that no network uses
    aside: dict[str, Tensor] = field(default_factory=dict)  # those of a single file that became a folder
    metadata: dict[str, str] = field(default_factory=dict)  # texts of a single file
    dialect: Dialect = Dialect()
    averaged: bool = False  # whether the UNet's weights were moving averages in the file
