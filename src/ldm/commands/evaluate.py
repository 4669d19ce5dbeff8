"""`ldm eval`: the judge of the world of shapes, and how far apart two sets of pictures are.

    ldm eval shapes [--model SOURCE] [--number 500] [--sets one two] [--json FILE]
    ldm eval frechet A B [--features NAME] [--json FILE]
    ldm eval kernel A B [--features NAME] [--subsets 100] [--size 1000] [--json FILE]

What is slow to import waits until it is run.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError
from ldm.evaluation.shapes import SETS

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.pipeline import Pipeline

log = logging.getLogger("ldm")


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Put `eval` among the commands of a parser; `run` of what is parsed does it."""
    top = commands.add_parser("eval", help="measure a model, or sets of pictures")
    whats = top.add_subparsers(required=True, metavar="WHAT")
    judge = whats.add_parser(
        "shapes", help="how often a model of the world of shapes paints what is asked for"
    )
    judge.set_defaults(run=shapes)
    add_shapes_options(judge)

    near = whats.add_parser("frechet", help="the Fréchet distance (FID) of two sets of pictures")
    near.set_defaults(run=frechet)
    add_pair_options(near)

    near = whats.add_parser("kernel", help="the kernel distance (KID) of two sets of pictures")
    near.set_defaults(run=kernel)
    add_pair_options(near)
    near.add_argument("--subsets", type=int, default=100, metavar="N", help="(default: %(default)s)")
    near.add_argument("--size", type=int, default=1000, metavar="N", help="of each (default: %(default)s)")
    near.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of their draws (default: %(default)s)"
    )


def add_shapes_options(parser: argparse.ArgumentParser) -> None:
    """What the judge is told."""
    parser.add_argument(
        "--model", metavar="SOURCE", help="file or folder (default: the model in the package)"
    )
    parser.add_argument(
        "--number", type=int, default=500, metavar="N", help="prompts per set (default: %(default)s)"
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, metavar="SET", help=", ".join(SETS))
    parser.add_argument(
        "--seed", type=int, default=1, metavar="S", help="of the first picture (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, metavar="N")
    parser.add_argument("--guidance", type=float, metavar="W")
    parser.add_argument("--device", default="cpu", metavar="D")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table here")


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """What a distance is told."""
    for name in ("A", "B"):
        parser.add_argument(
            name.lower(),
            type=Path,
            metavar=name,
            help="folder of pictures, or features: .safetensors or .npy",
        )
    parser.add_argument(
        "--features", metavar="NAME",
        help="of folders: pixels (the default, and weak), clip:FOLDER, fidelity, or your own FILE.py:NAME",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="pictures at once")
    parser.add_argument("--device", default="cpu", metavar="D")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")


def shapes(options: argparse.Namespace) -> None:
    """Let the judge say how often a model paints what it is asked for."""
    from ldm.loading import load

    check_place(options.json)
    judged(load(options.model, device=options.device), options, options.model)


def judged(pipe: "Pipeline", options: argparse.Namespace, source: str | Path | None) -> None:
    """Print the table of a pipeline, row by row, and write it where that is asked for."""
    from ldm.evaluation.shapes.scoring import ASPECTS, check_judged, score

    check_judged(pipe)
    told = {"steps": options.steps, "guidance": options.guidance}
    table: dict[str, dict[str, float]] = {}
    model = "bundled" if source is None else str(source)
    figures = {"prompts": options.number, "seed": options.seed, "model": model, **told, "percent": table}
    for name in options.sets:
        found = score(pipe, name, options.number, options.seed, **told)
        if not table:
            print(f"{'percent right':14}" + "".join(f"{aspect:>9}" for aspect in ASPECTS))
        print(f"{name:14}" + "".join(f"{value:9.1f}" for value in found.values()), flush=True)
        table[name] = found
        write(options.json, figures)  # of the sets so far


def frechet(options: argparse.Namespace) -> None:
    """Print the Fréchet distance of two sets."""
    from ldm.evaluation import distances

    a, b, told = pair(options)
    if (rows := min(len(a), len(b))) <= a.shape[1]:
        log.warning(
            "%d rows of %d numbers say little of a covariance: the distance is too large, and is to be "
            "compared only with those of as many rows", rows, a.shape[1],
        )  # fmt: skip
    found = distances.frechet(a, b)
    print(f"frechet {found:.6g}")
    write(options.json, {"measure": "frechet", "distance": found, **told})


def kernel(options: argparse.Namespace) -> None:
    """Print the kernel distance of two sets."""
    from ldm.evaluation import distances

    draws = {"subsets": options.subsets, "size": options.size, "seed": options.seed}
    distances.check_draws(**draws)
    a, b, told = pair(options, least=options.size)
    found = distances.kernel_distance(a, b, **draws)
    print(f"kernel {found.mean:.6g} ± {found.std:.2g}")
    write(options.json, {"measure": "kernel", "distance": found.mean, "std": found.std, **draws, **told})


def pair(options: argparse.Namespace, least: int = 1) -> tuple["Tensor", "Tensor", dict[str, Any]]:
    """The features of A and B, and what is to be written of them. least: of each there must be so many."""
    from ldm.evaluation.extractors import extractor
    from ldm.evaluation.features import from_file, from_folder, pictures

    check_place(options.json)
    folders = options.a.is_dir() or options.b.is_dir()
    if options.features and not folders:
        raise InputError(f"--features {options.features} is for folders; A and B are files of features")
    name = (options.features or "pixels") if folders else None
    extract = extractor(name, options.device) if name else None
    sets: list[Any] = []
    for path in (options.a, options.b):  # both, before pictures are looked at, which may take long
        sets.append(pictures(path) if path.is_dir() else from_file(path))
        if len(sets[-1]) < least:
            raise InputError(
                f"{path} has {len(sets[-1])} of {least}, as --size asks for; give more, or lower it"
            )
    a, b = (
        from_folder(path, extract, batch=options.batch) if extract and path.is_dir() else found
        for path, found in zip((options.a, options.b), sets, strict=True)
    )
    told = {"features": name, "a": str(options.a), "b": str(options.b), "rows": [len(a), len(b)]}
    return a, b, told


def check_place(path: Path | None) -> None:
    """Raises InputError, before anything is measured, for a file that could not be written."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise InputError(f"--json: {path} is a folder; name a file in it")
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"--json: {path} cannot be written: {error.strerror or error}") from error


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Figures as JSON, completely or not at all. Raises CheckpointError if that fails."""
    from ldm.checkpoint.files import replacing

    if path is not None:
        with replacing(path) as file:
            file.write((json.dumps(figures, indent=1) + "\n").encode())
