"""Embeddings of textual inversion: the vectors of a new token, in a file of their own (Gal et al. 2023).

Read are the forms in use, n vectors of the width d of a text encoder, for one token:

    diffusers       {token: [d] or [n d]}
    AUTOMATIC1111   {"emb_params": [n d]}, in a pickle {"string_to_param": {"*": [n d]}}
    SDXL, both      {"clip_l": [n 768], "clip_g": [n 1280]}

In the last two the token is what the file is called. Pickles are read without executing anything.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.checkpoint.files import File, write
from ldm.checkpoint.paths import source_path, target_path
from ldm.checkpoint.values import check_finite
from ldm.clip.config import ClassConfig
from ldm.errors import CheckpointError, InputError
from ldm.family import Family

PARTS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # of SDXL
UNNAMED = ("emb_params", "*")  # keys that are no tokens
WIDTHS = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "SDXL's second text encoder or LDM's text to image",
}
FORMS = ("diffusers", "a1111")
ZIP = b"PK\x03\x04"
MOST_SHOWN = 4


class Embedding(NamedTuple):
    """What a file teaches."""

    token: str  # by what the file says, or is called
    vectors: list[Tensor]  # [n width] of each text encoder


def read_embedding(source: str | Path, family: Family) -> Embedding:
    """The embedding in a file, for a family. Raises CheckpointError saying what does not fit; InputError."""
    check_hears(family)
    path = source_path(source)
    file = opened(path)
    names = tuple(file.entries)
    if names and set(names) <= set(PARTS.values()):
        names = parts(file, family)
    elif len(names) != 1:
        more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
        raise CheckpointError(
            f"{path} has {', '.join(names[:MOST_SHOWN]) + more or 'nothing'}, which is no embedding of one "
            "token; give a file of textual inversion"
        )
    check_shapes(file, family, names)
    token = path.stem if names[0] in (*UNNAMED, *PARTS.values()) else names[0]
    return Embedding(token, [vectors(file, name) for name in names])


def write_embedding(path: str | Path, family: Family, embedding: Embedding, form: str = "diffusers") -> None:
    """Write an embedding to a .safetensors file, in a form that `read_embedding` reads.

    form  "diffusers" or "a1111"; SDXL has one for both
    Raises InputError; CheckpointError, leaving nothing behind, if it cannot be written.
    """
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path} must end in .safetensors, for that is what is written")
    names = [UNNAMED[0] if form == "a1111" else embedding.token]
    if len(family.texts) > 1:
        names = [PARTS[text.name] for text in family.texts]
    write(target_path(path), dict(zip(names, embedding.vectors, strict=True)), {})


def check_hears(family: Family) -> None:
    """Raises InputError for a family that hears no words."""
    if not family.texts or any(isinstance(text.config, ClassConfig) for text in family.texts):
        raise InputError(f"{family.name} hears no words, so it has no tokens to add to")


def opened(path: Path) -> File:
    """A safetensors file, or an archive of torch.save under any name."""
    try:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP)) == ZIP
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return File.unpickled(path, within="string_to_param") if zipped else File.open(path)


def parts(file: File, family: Family) -> tuple[str, ...]:
    """Which tensors of a file of SDXL's form a family needs. The refiner has the second encoder alone."""
    names = tuple(PARTS[text.name] for text in family.texts if text.name in PARTS)
    there, second = file.entries, PARTS["text_encoder_2"]
    if not names or (second in there and second not in names):
        raise CheckpointError(
            f"{file.path} has {', '.join(there)}, as of SDXL, and {family.name} has other text encoders; "
            "use it with the model it was made for"
        )
    if missing := [name for name in names if name not in there]:
        raise CheckpointError(f"{file.path} has no {missing[0]}, but {family.name} needs it; get it whole")
    return names


def check_shapes(file: File, family: Family, names: Sequence[str]) -> None:
    """Raises CheckpointError where tensors are no vectors of one token for a family's text encoders."""
    shapes = {name: file.entries[name].shape for name in names}
    for name, shape in shapes.items():
        if len(shape) not in (1, 2) or 0 in shape:
            raise CheckpointError(f"{file.path}: {name} is {list(shape)}, and no vectors; get the file again")
    found = [shape[-1] for shape in shapes.values()]
    wanted = [text.config.width for text in family.texts]
    if found != wanted:
        known = "SDXL" if len(found) > 1 else WIDTHS.get(found[0], "no family known here")
        raise CheckpointError(
            f"{file.path} has vectors of width {listed(found)}, as of {known}, and {family.name} needs "
            f"{listed(wanted)}; use it with the model it was made for"
        )
    counts = [1 if len(shape) == 1 else shape[0] for shape in shapes.values()]
    if len(set(counts)) > 1 or counts[0] > most_vectors(family):
        raise CheckpointError(
            f"{file.path} has {listed(counts)} vectors of one token; a prompt has room for "
            f"{most_vectors(family)}, and each text encoder needs as many; get the file again"
        )


def most_vectors(family: Family) -> int:
    """How many vectors a token may have, so that it fits between start and end."""
    return min(text.length for text in family.texts) - 2


def vectors(file: File, name: str) -> Tensor:
    """The vectors of a tensor, [n d]."""
    value = file.read(name)
    if not value.is_floating_point():
        raise CheckpointError(f"{file.path}: {name} is of {value.dtype}, and no vectors; get the file again")
    check_finite(value, f"{file.path}: {name}")
    return torch.atleast_2d(value)


def listed(numbers: Sequence[int]) -> str:
    """Numbers in a sentence."""
    return " and ".join(map(str, numbers))
