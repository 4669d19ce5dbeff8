"""Headers are written as the reference implementation writes them: as in the published files, byte for byte.

metadata | tensors, of each dtype by name | spaces
"""

import hashlib
import io
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import ldm
from ldm.checkpoint import files, plan, tables
from ldm.checkpoint.header import DTYPES
from ldm.clip import Tokenizer
from ldm.families import SD1
from ldm.model import Model, Origin

# v1-5-pruned-emaonly.safetensors, runwayml 2022: its header without the eight bytes of its length
LENGTH, SHA256 = 156_444, "ed6e1a1f33ba3a02193e599f6441e213f973f2949dedcfafefd570da536eae9e"
AVERAGE = {  # what is left of moving averages in the published file
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(0, dtype=torch.int32),
}


@pytest.fixture
def header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A function that gives the header, without its length, of the file that a model would be saved as."""

    def get(pipe: Model) -> bytes:
        file = io.BytesIO()
        monkeypatch.setattr(files, "replacing", lambda path: nullcontext(file))
        with pytest.raises(NotImplementedError):  # there are no weights to write
            ldm.save(pipe, tmp_path / "model.safetensors", dtype=torch.float32)
        length = int.from_bytes(file.getvalue()[:8], "little")
        assert length % 8 == 0  # so that the data is aligned
        return file.getvalue()[8 : 8 + length]

    return get


@cache
def networks() -> list[Any]:
    """Those of Stable Diffusion 1, without weights."""
    with torch.device("meta"):
        return [build() for build in plan.networks(SD1).values()]


def full_size(more: dict[str, Tensor]) -> Model:
    """Stable Diffusion 1, and what its file has beside the weights."""
    unet, vae, text = networks()
    origin = Origin("original", extras=tables.extras(SD1) | more, metadata={"format": "pt"})
    return Model(SD1, unet, vae, [text], [Tokenizer.openai()], origin)


def padded(text: bytes) -> bytes:
    """A header as the writers of 2022 ended it: n bytes and n % 8 spaces, which aligns nothing."""
    text = text.rstrip(b" ")
    return text + b" " * (len(text) % 8)


def test_the_header_of_stable_diffusion_is_the_published_one(header):
    text = header(full_size(AVERAGE))
    assert len(padded(text)) == LENGTH
    assert hashlib.sha256(padded(text)).hexdigest() == SHA256


def test_another_dtype_gives_another_header(header):
    whole = {"model_ema.num_updates": torch.tensor(0, dtype=torch.int64)}
    text = header(full_size(AVERAGE | whole))
    assert hashlib.sha256(padded(text)).hexdigest() != SHA256


def test_files_are_those_of_the_reference_implementation(tmp_path: Path):
    """Of every dtype two tensors, none in its place; scalars, empty ones, and names beyond ASCII."""
    tensors = {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3), 'é"\\\n猫': torch.ones(5)}
    for i, dtype in enumerate(DTYPES.values()):
        tensors |= {f"{letter}.{i}": torch.arange(6).reshape(2, 3).to(dtype) for letter in "zb"}
    files.write(tmp_path / "ours.safetensors", tensors, {"format": "pt"})
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
