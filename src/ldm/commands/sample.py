"""`ldm sample`: draw images of a prompt, or of each line of a file."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from ldm.checks import whole
from ldm.commands.words import DTYPES, add_changes, details, opened, pictures, size, spaced, spoken
from ldm.errors import InputError
from ldm.image import write
from ldm.request import MOST_IMAGES
from ldm.schedulers.samplers import SAMPLERS
from ldm.schedulers.spacing import SPACINGS

OUT = "out.png"


def add(commands: Any) -> None:
    """The subcommand and its words; commands: as of `add_subparsers`."""
    draw = commands.add_parser("sample", help="draw images of a prompt, or of each line of a file")
    draw.set_defaults(run=sample)
    draw.add_argument("prompt", nargs="?")
    draw.add_argument(
        "-o", "--out", metavar="OUT.png", help=f"file to write (default: {OUT}); with --prompts a folder"
    )
    draw.add_argument("--model", metavar="SOURCE", help="file or folder (default: the model in the package)")
    add_changes(draw)
    draw.add_argument("--negative", metavar="TEXT", help="what to stay away from")
    draw.add_argument("--steps", type=int, metavar="N")
    draw.add_argument("--guidance", type=float, metavar="W")
    draw.add_argument("--size", type=size, metavar="WxH", help="pixels, such as 512x768")
    draw.add_argument("--seed", type=int, metavar="S", help="default: any; with --prompts 0")
    draw.add_argument("-n", type=int, default=1, metavar="N", help="images; more than one are numbered files")
    draw.add_argument("--sampler", metavar="NAME", help=", ".join(SAMPLERS))
    draw.add_argument("--spacing", metavar="NAME", help=f"of the sampler's levels: {', '.join(SPACINGS)}")
    draw.add_argument("--prompt-weights", action="store_true", help="hear (red:1.3) and [red]")
    draw.add_argument("--clip-skip", type=int, default=0, metavar="N", help="last layers of CLIP left out")
    draw.add_argument("--tile", type=int, default=0, metavar="PIXELS", help="encode and decode in squares")
    draw.add_argument("--image", metavar="FILE", help="picture to start from")
    draw.add_argument(
        "--strength", type=float, metavar="X", help="how far from it, 0 to 1 (mostly 0.8 if not given)"
    )
    draw.add_argument("--mask", metavar="FILE", help="with --image: repaint only where this is white")
    draw.add_argument("--device", default="cpu", metavar="D")
    draw.add_argument("--dtype", choices=DTYPES, default="fp32")
    draw.add_argument("--fast", action="store_true", help="the same pictures to rounding, in less time")
    add_many(draw)


def add_many(draw: argparse.ArgumentParser) -> None:
    """The words of a file of prompts."""
    many = draw.add_argument_group("many prompts", "alone, or split by torchrun --nproc-per-node N -m ldm …")
    many.add_argument("--prompts", metavar="FILE", help=".txt, a prompt per line; or .jsonl, an object")
    many.add_argument("--batch-size", type=int, metavar="N", help="images drawn at once (default: 1)")
    many.add_argument("--overwrite", action="store_true", help="draw anew what was drawn otherwise")


def sample(options: argparse.Namespace) -> None:
    """Draw images and write them, each with its parameters inside."""
    if options.fast and options.device == "cpu" and options.dtype != "fp32":
        raise InputError(f"--fast on a CPU is for --dtype fp32, not {options.dtype}; leave one of them out")
    if options.prompts is not None:
        if options.prompt is not None:
            raise InputError(f"--prompts {options.prompts} and a prompt beside it; give one of them")
        from ldm.commands.batch import draw_all

        draw_all(options)
        return
    if options.prompt is None:
        raise InputError("there is no prompt; give one, or a file of them: --prompts FILE")
    if options.batch_size is not None or options.overwrite:
        name = "--overwrite" if options.overwrite else "--batch-size"
        raise InputError(f"{name} needs --prompts, a file of prompts")
    draw_one(options)


def draw_one(options: argparse.Namespace) -> None:
    """The images of one prompt."""
    out = Path(OUT if options.out is None else options.out)
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--out {out} must end in .png, .jpg or .webp")
    paths = numbered(out, options.n)
    check_writable(paths)
    width, height = options.size or (None, None)
    given = pictures(options)
    pipe = opened(options, options.device)
    if options.fast:
        pipe.pack()
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
        strength=options.strength,
        **given,
        **details(options),
    )
    for drawn, path in zip(result, paths, strict=True):
        write(drawn, path)
        print(path)


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
