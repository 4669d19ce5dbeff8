"""A model: its networks, what they are of, and where their weights came from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ldm.devices import check_dtype, find_device
from ldm.errors import DeviceError, InputError
from ldm.family import Family
from ldm.packed import check, is_packed, pack
from ldm.pages import forget, mapped, unwritten
from ldm.unet import UNet
from ldm.vae import VAE

Self = TypeVar("Self", bound="Model")


class Dialect(NamedTuple):
    """Which of several names in use a source had."""

    text_prefixes: tuple[str, ...] = ()  # of the text encoders; none: the layout's usual ones
    old_attention: bool = False  # the names of diffusers before 0.17


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


def fitting(family: Family, name: str, dtype: torch.dtype) -> torch.dtype:
    """What a network computes in where `dtype` is asked for: float32 if float16 is too narrow for it."""
    narrow = name == "vae" and family.vae.overflows and dtype == torch.float16
    return torch.float32 if narrow else dtype


def kernels() -> Any:
    """What makes networks ready on a GPU. Raises DeviceError."""
    try:
        return import_module("ldm_kernels.networks")  # not before: it takes longer than all of ldm
    except ImportError as error:
        raise DeviceError(
            f"fast=True on a GPU needs Triton ({error}): pip install 'ldm[triton]'; or leave it out"
        ) from error


class Model:
    """The networks of one model."""

    def __init__(
        self,
        family: Family,
        unet: UNet,
        vae: VAE,
        text_encoders: Sequence[nn.Module],
        tokenizers: Sequence[Any],
        origin: Origin = Origin(),
    ):
        self.family, self.unet, self.vae = family, unet, vae
        self.text_encoders: list[Any] = list(text_encoders)
        self.tokenizers, self.origin = list(tokenizers), origin

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.conv_in.weight.device

    def __repr__(self) -> str:
        count = sum(weight.numel() for network in self.networks() for weight in network.parameters())
        dtype, device = self.unet.conv_in.weight.dtype, self.device
        return f"{type(self).__name__}({self.family.name}, {count:,} parameters, {dtype}, {device})"

    def to(self: Self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move and convert all networks in place, as `ldm.load`; returns self.

        Raises DeviceError and InputError.
        """
        self.need_weights("moving or converting")
        target = find_device(device if device is not None else self.device)
        for name, network in self.named_networks().items():
            wanted = None if dtype is None else fitting(self.family, name, check_dtype(dtype))
            network.to(device=target, dtype=wanted)
        return self

    def pack(self: Self) -> Self:
        """Make UNet and autoencoder ready to draw, faster; returns self. By `packed` on a CPU, in float32.

        On a GPU, in bfloat16 or float16, by the kernels of the extra `triton`, and CLIP's text encoders by
        graphs; an autoencoder that is in float32 there decodes in bfloat16 if its pictures then agree to
        40 dB, else the logger "ldm" says so.
        They cannot be trained, changed or saved then. Put LoRAs on before. Raises InputError where they are
        of another dtype; DeviceError without oneDNN, or without Triton.
        """
        if self.device.type == "cuda":
            kernels().prepare(self)
            return self
        for step in (check, pack):  # both may be refused before either is changed
            for network in (self.unet, self.vae):
                step(network)
        return self

    def need_weights(self, what: str) -> None:
        """Raises InputError if they are packed."""
        if is_packed(self.unet) or is_packed(self.vae):
            raise InputError(f"{what} needs the weights, and these are packed; load without fast=True")

    def rest(self) -> None:
        """Give back the memory of weights that lie in files, if packed; who needs them reads them again."""
        if is_packed(self.unet) and self.device.type == "cpu":
            files = unwritten()
            for network in self.networks():
                forget(mapped(network.parameters(), files))

    def named_networks(self) -> dict[str, nn.Module]:
        """They by their names: "unet", "vae", and as `family.texts` has them."""
        names = ("unet", "vae", *(text.name for text in self.family.texts))
        return dict(zip(names, self.networks(), strict=True))

    def networks(self) -> list[nn.Module]:
        """The UNet, the VAE and the text encoders."""
        return [self.unet, self.vae, *self.text_encoders]
