"""The command `ldm`: draw images, look at a model, train one, from a shell."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import ldm
from ldm.checkpoint.save import LAYOUTS
from ldm.commands import evaluate, sample, train
from ldm.commands.words import DTYPES, add_changes, put_on
from ldm.errors import InputError, LdmError


class Parser(argparse.ArgumentParser):
    """Argparse with one sentence instead of the usage text before an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for bad input (one sentence on stderr), 130 for Ctrl-C."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it says of damaged files is in our sentence
    options = understood(parser(), arguments)
    try:
        options.run(options)
    except LdmError as error:
        print(f"ldm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ldm: stopped", file=sys.stderr)
        return 130
    return 0


def understood(top: Parser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a subcommand; its words may stand between its options."""
    options, rest = top.parse_known_args(arguments)
    if rest and ("words" not in options or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    options.words = [*getattr(options, "words", []), *rest]
    return options


def parser() -> Parser:
    """The arguments of every subcommand."""
    top = Parser(prog="ldm", description="Latent diffusion: images from text.")
    top.add_argument("--version", action="version", version=f"ldm {ldm.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    sample.add(commands)
    train.add(commands)
    evaluate.add(commands)

    look = commands.add_parser("inspect", help="say what a model file or folder is")
    look.set_defaults(run=inspect)
    look.add_argument("source")

    change = commands.add_parser("convert", help="write a model in another layout or dtype")
    change.set_defaults(run=convert)
    change.add_argument("source", help=".safetensors, .ckpt or folder")
    change.add_argument("target", help="a file .safetensors, or a folder")
    add_changes(change, embeddings=False)
    change.add_argument("--layout", choices=LAYOUTS, help="default: original for a file, else diffusers")
    change.add_argument("--dtype", choices=DTYPES, help="default: that of each tensor")
    return top


def inspect(options: argparse.Namespace) -> None:
    """Print what a source is."""
    print(ldm.inspect(options.source))


def convert(options: argparse.Namespace) -> None:
    """Write a model as another file or folder."""
    target = Path(options.target)
    layout = options.layout or ("original" if target.suffix in (".safetensors", ".ckpt") else "diffusers")
    if layout == "original" and target.suffix != ".safetensors":
        raise InputError(f"{target} must end in .safetensors, for that is what is written")
    pipe = ldm.load(options.source)
    put_on(pipe, options.lora)
    ldm.save(pipe, target, layout, DTYPES.get(options.dtype))
    print(target)
