"""Packed models in which PyTorch computes what kernels do on a GPU: by the interpreter they take minutes."""

import pytest
import torch
from ldm_kernels import backend, networks, ways

import ldm
from tests import reduced
from tests.tiny import unit_noise

CONTESTS = (ways.norm_images, ways.norm_tokens, ways.gate, ways.join, backend.run)


def by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let PyTorch compute all that there are kernels for."""
    for contest in CONTESTS:
        monkeypatch.setattr(contest, "first", "plain")


def packed(name: str) -> ldm.Pipeline:
    """A small model of a family, made ready."""
    pipe = reduced.make(name)
    networks.prepare(pipe)
    return pipe


def told(pipe: ldm.Pipeline, side: int = 8, seed: int = 0) -> tuple[torch.Tensor | None, ...]:
    """What a UNet hears and sees of two images: x, t, context, vector, label."""
    config = pipe.unet.config
    return (
        unit_noise(seed, 2, config.in_channels, side, side),
        torch.tensor([3.0, 900.0]),
        unit_noise(seed + 1, 2, 9, config.context_dim) if config.context_dim else None,
        unit_noise(seed + 2, 2, config.vector_dim) if config.vector_dim else None,
        torch.tensor([3, 20]) if config.labels else None,
    )
