"""What words on the command line mean: sizes, dtypes, models, pictures, prompts, samplers."""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import ldm
from ldm.errors import InputError
from ldm.reading import checked, told
from ldm.rows import hears_classes

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def size(text: str) -> tuple[int, int]:
    """`512x768` -> (512, 768)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"size {text!r} must look like 512x768")
    return int(width), int(height)


def add_changes(parser: argparse.ArgumentParser, embeddings: bool = True) -> None:
    """The words of what is put on a model."""
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[=W]", type=weighed,
        help="put this LoRA on the model, with weight W (default: 1); again for more",
    )  # fmt: skip
    if embeddings:
        parser.add_argument(
            "--embedding", action="append", default=[], metavar="FILE",
            help="a textual inversion: its token can be used in prompts; again for more",
        )  # fmt: skip


def weighed(text: str) -> tuple[str, float]:
    """`cats.safetensors=0.8` -> ("cats.safetensors", 0.8); without the number 1."""
    file, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, 1.0
    try:
        return file, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must look like FILE or FILE=0.8") from None


def opened(options: argparse.Namespace, device: str | torch.device) -> ldm.Pipeline:
    """The model with what is put on it. Raises as `ldm.load`, `load_lora` and `load_textual_inversion`."""
    pipe = ldm.load(options.model, dtype=DTYPES[options.dtype], device=device)
    put_on(pipe, options.lora)
    for file in options.embedding:
        pipe.load_textual_inversion(file)
    return pipe


def put_on(pipe: ldm.Pipeline, loras: list[tuple[str, float]]) -> None:
    """Put LoRAs on a model."""
    for i, (file, weight) in enumerate(loras):
        again = Path(file).stem in pipe.adapters.changes
        pipe.load_lora(file, weight, name=f"{Path(file).stem} {i + 1}" if again else None)


def pictures(options: argparse.Namespace) -> dict[str, Any]:
    """The pictures to start from, as keywords of a pipeline. Raises InputError."""
    if options.mask and not options.image:
        raise InputError("--mask needs --image, the picture to repaint")
    if options.strength is not None and not options.image:
        raise InputError("--strength needs --image, the picture to start from")
    return {
        "image": picture("--image", options.image),
        "mask_image": picture("--mask", options.mask),
    }


def picture(option: str, path: str | None) -> Image.Image | None:
    """A picture read completely. Raises InputError for what is none."""
    if path is None:
        return None
    name = f"{option} {path}"
    with told(name, "give another file"), warnings.catch_warnings(), open(path, "rb") as file:
        warnings.simplefilter("ignore")  # Pillow's of large and odd files: they are read or refused
        return checked(Image.open(file), name)


def details(options: argparse.Namespace) -> dict[str, Any]:
    """Those of a call that the command line knows, as keywords of a pipeline."""
    return {
        "prompt_weights": options.prompt_weights or None,
        "clip_skip": options.clip_skip or None,
        "tile": options.tile or None,
    }


def spoken(pipe: ldm.Pipeline, prompt: str) -> str | int | None:
    """A prompt as the model hears it: a text, the number of a class, or, where it hears none, None for ""."""
    if hears_classes(pipe.family):
        if not prompt.isdecimal():
            raise InputError(f"{pipe.family.name} draws classes; give a number, not {prompt!r}")
        return int(prompt)
    return prompt or None if not pipe.family.texts else prompt


def spaced(pipe: ldm.Pipeline, name: str | None, spacing: str | None) -> ldm.Sampler | str | None:
    """A sampler, the family's by default, with another spacing if there is one."""
    return ldm.sampler(name or pipe.family.sampler, spacing=spacing) if spacing else name
