"""Many prompts at once, alone or split over the processes that torchrun started.

    torchrun --nproc-per-node 8 -m ldm sample --prompts FILE --out FOLDER --device cuda

Every process has every 8th batch, and after each they wait for each other, so that they end together. Where
one fails torchrun ends all. What is there already is not drawn again: the same command goes on with what was
interrupted.
"""

import argparse
import json
import logging
import re
import tempfile
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

import ldm
from ldm.checkpoint.files import replacing
from ldm.checks import whole
from ldm.commands.jobs import Drawing, batches, drawings
from ldm.commands.lines import read_lines
from ldm.commands.words import opened, pictures
from ldm.errors import InputError
from ldm.image import write
from ldm.parameters import arguments
from ldm.pictures import Pictures
from ldm.ranks import Ranks, joined
from ldm.request import MOST_IMAGES
from ldm.result import marked

MANIFEST = "manifest.jsonl"
LEFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp(\.png)?")  # a file that was being written


def draw_all(options: argparse.Namespace) -> None:
    """Draw what the lines of a file say into a folder. Raises InputError, before anything is drawn."""
    most = whole("--batch-size", options.batch_size, MOST_IMAGES, 1)
    lines = read_lines(Path(options.prompts))
    folder = made(options.out, options.prompts)
    given = pictures(options)
    with joined(options.device) as ranks:
        if not ranks.first:
            logging.getLogger("ldm").setLevel(logging.ERROR)  # the first one warns
        pipe = opened(options, ranks.device)
        found = drawings(pipe, lines, folder, options, Pictures(given["image"], given["mask_image"]))
        if options.fast:  # only now, for it is by its weights that a model is known
            pipe.pack()
        count = draw(pipe, batches(found, most), given, ranks, options.overwrite)
        if ranks.first:
            with replacing(folder / MANIFEST) as file:
                file.writelines(rows(found))
            print(f"{folder}: {len(found)} images, {count} of them drawn now; {MANIFEST} tells of all")


def made(out: str | None, prompts: str) -> Path:
    """The folder to draw into, made if it is not there. Raises InputError."""
    if out is None:
        raise InputError("--prompts needs --out, the folder to draw into")
    folder = Path(out)
    try:
        if (folder.exists() and not folder.is_dir()) or folder.suffix.lower() == ".png":
            raise InputError(f"--out {folder} is a file; with --prompts give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        if (folder / MANIFEST).resolve() == Path(prompts).resolve():
            raise InputError(f"--prompts {prompts} is where the list of images will be; give it another name")
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written: {error.strerror}; give another") from error
    return folder


def draw(
    pipe: ldm.Pipeline, groups: list[list[Drawing]], given: dict[str, Any], ranks: Ranks, overwrite: bool
) -> int:
    """Draw what is not there yet, as one of the processes; returns how many images all of them drew."""
    from tqdm.auto import tqdm

    todo = [[one for one in group if not one.stands(overwrite)] for group in groups[ranks.rank :: ranks.size]]
    if ranks.first:
        tidy([one.path for group in groups for one in group])
    ranks.wait()  # until all have looked: what is wrong is told before anything is drawn
    rounds = [groups[at : at + ranks.size] for at in range(0, len(groups), ranks.size)]
    with tqdm(total=sum(map(len, groups)), desc="images", disable=not ranks.first) as bar:
        for own, together in zip_longest(todo, rounds, fillvalue=()):
            if own:
                draw_group(pipe, own, given)
            ranks.wait()
            bar.update(sum(map(len, together)))
    counts = torch.tensor([float(sum(map(len, todo)))], device=ranks.device)
    return round(float(ranks.mean(counts)) * ranks.size)


def draw_group(pipe: ldm.Pipeline, group: list[Drawing], given: dict[str, Any]) -> None:
    """Draw images of one kind at once and write them."""
    said = [one.said for one in group]
    own: dict[str, Any] = {
        name: [row[name] for row in said] for name in ("prompt", "negative_prompt", "seed")
    }
    if own["negative_prompt"][0] is None:
        own["negative_prompt"] = None
    if not pipe.family.texts:
        own |= {"prompt": None, "num_images_per_prompt": len(group)}
    result = pipe(**arguments(said[0], given | own), progress=False)
    marks = {name: said[0][name] for name in ("model", "pictures") if name in said[0]}
    for image, one in zip(marked(result, **marks), group, strict=True):
        write(image, one.path)


def tidy(paths: Iterable[Path]) -> None:
    """Remove what a process that was killed had not finished writing."""
    known = {path.stem for path in paths} | {MANIFEST}
    for folder in {path.parent for path in paths}:
        for path in folder.iterdir():
            if (hit := LEFT.fullmatch(path.name)) and hit[1] in known:
                path.unlink(missing_ok=True)


def rows(found: Iterable[Drawing]) -> Iterable[bytes]:
    """The lines of the list of images: file and parameters of each."""
    for one in found:
        yield json.dumps({"file": one.path.name} | one.said, ensure_ascii=False).encode() + b"\n"
