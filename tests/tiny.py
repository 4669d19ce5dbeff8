"""Small models with seeded random weights in which a prompt matters, and files made by hand."""

import gc
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoint import plan
from ldm.checkpoint.table import table
from ldm.clip import ClassConfig, CLIPConfig, Tokenizer, WordPiece
from ldm.clip.tokenizer import vocabulary
from ldm.families import SD1
from ldm.family import Family, Text
from ldm.pipeline import Pipeline
from ldm.unet import UNetConfig
from ldm.vae import VAEConfig

DATA = Path(__file__).parent / "data"
PNG_SIDE = 16  # pixels along a side of the tiny model's images

UNET = UNetConfig(channels=(32, 64), depth=(1, 1), res_blocks=1, context_dim=48)
AUTOENCODER = VAEConfig(channels=(32, 64), res_blocks=1)
TEXT = CLIPConfig(width=48, layers=2, heads=12, hidden=96)
BARE = replace(SD1, unet=UNET, vae=AUTOENCODER, texts=(Text(TEXT),))  # all of it can be told from tensors
TINY = replace(BARE, texts=(Text(replace(TEXT, vocab=714, length=20)),), size=PNG_SIDE, steps=4)
SHORT = Tokenizer.openai().merges[:200]


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of unit gain, embeddings of unit variance, norms and biases moved off their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            z = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(0.1 * z + name.endswith("weight"))
            else:
                embedding = "embedding." in name or name in ("tokens.weight", "positions.weight")
                weight.copy_(z if embedding else z / weight[0].numel() ** 0.5)
    return module.eval()


def make(family: Family = TINY, seed: int = 0, merges: Sequence[tuple[str, str]] = SHORT) -> Pipeline:
    """A pipeline with random weights."""
    built = [build() for build in plan.networks(family).values()]
    unet, vae, *texts = (randomise(network, seed + i) for i, network in enumerate(built))
    tokenizers = [
        Tokenizer(vocabulary(merges), merges, length=text.config.length, pad=text.pad)
        if isinstance(text.config, CLIPConfig)
        else WordPiece.bert(length=text.config.length)
        for text in family.texts
        if not isinstance(text.config, ClassConfig)
    ]
    return Pipeline(family, unet, vae, texts, tokenizers)


def error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def unit_noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def uncollected():
    """Within it Python looks for no circles: what is freed is freed as the last who holds it goes."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def hooked(network: nn.Module, hook):
    """Within the block `hook(module, args, out)` runs after each call of the network."""
    handle = network.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def read_all(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by the reference implementation."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def bare(path: Path) -> None:
    """Take the texts out of a safetensors file."""
    save_file(read_all(path), path)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit, in dtype and in names."""

    def bits(tensor: Tensor) -> Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(bits(a[k]), bits(b[k]))
        for k in a
    )


SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "F8_E4M3": 1}


def lines(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, dict]:
    """The header of a safetensors file with tensors of the given dtypes and shapes, one after another."""
    out, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for n in shape:
            size *= n
        out[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return out


def hollow(
    path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: dict | None = None
) -> Path:
    """A sound safetensors file whose tensors are holes: any size costs a header on the disk."""
    header = lines(tensors)
    end = max((line["data_offsets"][1] for line in header.values()), default=0)
    text = json.dumps(({"__metadata__": metadata} if metadata else {}) | header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("rb+") as file:
        file.truncate(8 + len(text) + end)
    return path


def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make plans of the same sizes share their networks, so that a thousand of them take seconds."""

    @cache
    def model_and_table(name, family, rules):
        with torch.device("meta"):
            model = plan.networks(family)[name]()
        return model, table(model.state_dict(), rules)

    def part(name, family, rules, store):
        return plan.Part(name, *model_and_table(name, family, tuple(rules)), store)

    monkeypatch.setattr(plan, "part", part)


def raw(path: Path, header: str, data: bytes = b"") -> Path:
    """A file with a header written as it stands."""
    text = header.encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def header_of(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Name -> dtype and shape, in the order of the header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: (x["dtype"], x["shape"]) for name, x in header.items() if name != "__metadata__"}


def without(names: Iterable[str], tensors: Mapping) -> dict:
    """The tensors but for some."""
    return {name: tensor for name, tensor in tensors.items() if name not in set(names)}
