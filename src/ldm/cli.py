"""The command `ldm`: draw an image, or look at a model, from a shell."""

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from PIL import Image

import ldm
from ldm.checkpoint.save import LAYOUTS
from ldm.checks import whole
from ldm.errors import InputError, LdmError
from ldm.image import write
from ldm.reading import checked, told
from ldm.request import MOST_IMAGES
from ldm.rows import hears_classes
from ldm.schedulers.samplers import SAMPLERS
from ldm.schedulers.spacing import SPACINGS

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Parser(argparse.ArgumentParser):
    """Argparse with one sentence instead of the usage text before an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for bad input (one sentence on stderr), 130 for Ctrl-C."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of damaged files is in our sentence
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except LdmError as error:
        print(f"ldm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ldm: stopped", file=sys.stderr)
        return 130
    return 0


def parser() -> Parser:
    """The arguments of every subcommand."""
    top = Parser(prog="ldm", description="Latent diffusion: images from text.")
    top.add_argument("--version", action="version", version=f"ldm {ldm.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    draw = commands.add_parser("sample", help="draw images of a prompt")
    draw.set_defaults(run=sample)
    draw.add_argument("prompt")
    draw.add_argument(
        "-o", "--out", default="out.png", metavar="OUT.png", help="file to write (default: %(default)s)"
    )
    draw.add_argument("--model", metavar="SOURCE", help="file or folder (default: the model in the package)")
    draw.add_argument("--negative", metavar="TEXT", help="what to stay away from")
    draw.add_argument("--steps", type=int, metavar="N")
    draw.add_argument("--guidance", type=float, metavar="W")
    draw.add_argument("--size", type=size, metavar="WxH", help="pixels, such as 512x768")
    draw.add_argument("--seed", type=int, metavar="S")
    draw.add_argument("-n", type=int, default=1, metavar="N", help="images; more than one are numbered files")
    draw.add_argument("--sampler", metavar="NAME", help=", ".join(SAMPLERS))
    draw.add_argument("--spacing", metavar="NAME", help=f"of the sampler's levels: {', '.join(SPACINGS)}")
    draw.add_argument("--prompt-weights", action="store_true", help="hear (red:1.3) and [red]")
    draw.add_argument("--clip-skip", type=int, default=0, metavar="N", help="last layers of CLIP left out")
    draw.add_argument("--tile", type=int, default=0, metavar="PIXELS", help="encode and decode in squares")
    draw.add_argument("--image", metavar="FILE", help="picture to start from")
    draw.add_argument(
        "--strength",
        type=float,
        metavar="X",
        help="how far from it, 0 to 1 (mostly 0.8 if not given)",
    )
    draw.add_argument("--mask", metavar="FILE", help="with --image: repaint only where this is white")
    draw.add_argument("--device", default="cpu", metavar="D")
    draw.add_argument("--dtype", choices=DTYPES, default="fp32")

    look = commands.add_parser("inspect", help="say what a model file or folder is")
    look.set_defaults(run=inspect)
    look.add_argument("source")

    change = commands.add_parser("convert", help="write a model in another layout or dtype")
    change.set_defaults(run=convert)
    change.add_argument("source", help=".safetensors, .ckpt or folder")
    change.add_argument("target", help="a file .safetensors, or a folder")
    change.add_argument("--layout", choices=LAYOUTS, help="default: original for a file, else diffusers")
    change.add_argument("--dtype", choices=DTYPES, help="default: that of each tensor")
    return top


def sample(options: argparse.Namespace) -> None:
    """Draw images and write them, each with its parameters inside."""
    out = Path(options.out)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--out {out} must end in .png, .jpg or .webp")
    paths = numbered(out, options.n)
    check_writable(paths)
    if options.mask and not options.image:
        raise InputError("--mask needs --image, the picture to repaint")
    width, height = options.size or (None, None)
    image, mask = picture("--image", options.image), picture("--mask", options.mask)
    pipe = ldm.load(options.model, dtype=DTYPES[options.dtype], device=options.device)
    result = pipe(
        spoken(pipe, options.prompt),
        options.negative,
        height=height,
        width=width,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        num_images_per_prompt=options.n,
        seed=options.seed,
        sampler=spaced(pipe, options.sampler, options.spacing),
        image=image,
        mask_image=mask,
        strength=options.strength,
        prompt_weights=options.prompt_weights or None,
        clip_skip=options.clip_skip or None,
        tile=options.tile or None,
    )
    for drawn, path in zip(result, paths, strict=True):
        write(drawn, path)
        print(path)


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


def numbered(out: Path, count: int) -> list[Path]:
    """The files to write: `out` itself, or out-1, out-2, …"""
    whole("-n", count, MOST_IMAGES)
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{i + 1}") for i in range(count)]


def check_writable(paths: list[Path]) -> None:
    """Raises InputError, before anything is drawn, for files that could not be written."""
    folder = paths[0].parent
    try:
        for path in paths:
            if path.is_dir():
                raise InputError(f"--out: {path} is a folder; name a file in it")
        if not folder.is_dir():
            raise InputError(f"--out: {folder} is not a folder; make it first")
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"--out: {paths[0]} cannot be written: {error.strerror}") from error


def inspect(options: argparse.Namespace) -> None:
    """Print what a source is."""
    print(ldm.inspect(options.source))


def convert(options: argparse.Namespace) -> None:
    """Write a model as another file or folder."""
    target = Path(options.target)
    layout = options.layout or ("original" if target.suffix in (".safetensors", ".ckpt") else "diffusers")
    if layout == "original" and target.suffix != ".safetensors":
        raise InputError(f"{target} must end in .safetensors, for that is what is written")
    ldm.save(ldm.load(options.source), target, layout, DTYPES.get(options.dtype))
    print(target)


def size(text: str) -> tuple[int, int]:
    """`512x768` -> (512, 768)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"size {text!r} must look like 512x768")
    return int(width), int(height)


def picture(option: str, path: str | None) -> Image.Image | None:
    """A picture read completely. Raises InputError for what is none."""
    if path is None:
        return None
    name = f"{option} {path}"
    with told(name, "give another file"), warnings.catch_warnings(), open(path, "rb") as file:
        warnings.simplefilter("ignore")  # Pillow's of large and odd files: they are read or refused
        return checked(Image.open(file), name)
