"""What a file of prompts asks for: images, each with a file of its own and all that the file is to say.

Image i, counted over all prompts and the -n of each, has seed + i, unless its line has a seed: the j-th of
these has that + j. So neither what is drawn together nor who draws it makes a difference.
"""

import argparse
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import ldm
from ldm.checks import shown, whole
from ldm.commands.lines import Line, within
from ldm.commands.words import details, spaced, spoken
from ldm.errors import InputError
from ldm.parameters import parameters
from ldm.pictures import Pictures, grown
from ldm.prompts import weighted
from ldm.request import MOST_IMAGES, Request, read, refuse_odd

MOST_FILES = 1_000_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = 64  # numbers of each tensor that tell models apart


@dataclass(frozen=True)
class Drawing:
    """An image to be drawn."""

    path: Path  # of its PNG file
    said: dict[str, Any]  # the parameters that the file is to carry

    @property
    def kind(self) -> tuple[Any, ...]:
        """What images that are drawn together have in common."""
        names = ("height", "width", "num_inference_steps", "guidance_scale")
        return (*(self.said[name] for name in names), self.said["negative_prompt"] is None)

    def stands(self, overwrite: bool) -> bool:
        """Whether the file is there, whole, and says what it is to say; a torn one counts as none.

        Raises InputError for a file that says anything else, unless it may be overwritten.
        """
        data = content(self.path)
        if not is_whole(data):
            if overwrite or is_torn(data):
                return False
            raise InputError(f"{self.path} is there, and no PNG file; move it away, or give --overwrite")
        try:
            found, said = plain(parameters(self.path)), plain(self.said)
        except InputError as error:
            if overwrite:
                return False
            raise InputError(
                f"{self.path} is there, and does not say what it was drawn with; move it away, "
                "or give --overwrite"
            ) from error
        other = [name for name in said | found if found.get(name) != said.get(name)]
        if other and not overwrite:
            raise InputError(
                f"{self.path} was drawn with {listed(found, other)}, not {listed(said, other)}; "
                "give another --out, or --overwrite"
            )
        return not other


def drawings(
    pipe: ldm.Pipeline, lines: list[Line], folder: Path, options: argparse.Namespace, given: Pictures
) -> list[Drawing]:
    """All images that the lines ask for. Raises InputError that names the line."""
    times = whole("-n", options.n, MOST_IMAGES)
    if len(lines) * times > MOST_FILES:
        raise InputError(f"{len(lines)} prompts are more than {MOST_FILES // times}; split the file")
    refuse_odd(pipe.family, (), given, latents=None, callback=None)
    marks = (
        pipe.additions()
        | {"model": mark(pipe)}
        | ({"pictures": seen(given)} if given.image is not None else {})
    )
    first = whole("--seed", options.seed, 2**63 - len(lines) * times, 0, least=0)
    found: list[Drawing] = []
    places: dict[str, str] = {}
    for i, line in enumerate(lines):
        with within(line.place):
            request = requested(pipe, line, first + i * times, options, given)
            rows = request.parameters(pipe.family, given.names(None))
            for name, row in zip(names(line, i, times), rows, strict=True):
                if (there := places.setdefault(name.lower(), line.place)) != line.place:
                    raise InputError(f"{name} is the file of {there} too; give another name")
                found.append(Drawing(folder / name, row | marks))
    return found


def requested(
    pipe: ldm.Pipeline, line: Line, seed: int, options: argparse.Namespace, given: Pictures
) -> Request:
    """What a line asks for, and where it says nothing the command. Raises InputError."""
    family, (width, height) = pipe.family, options.size or (None, None)
    said = {
        "negative_prompt": options.negative, "num_inference_steps": options.steps, "seed": seed,
        "guidance_scale": options.guidance, "width": width, "height": height,
    } | line.told  # fmt: skip
    height, width = grown(family, given.image, said["height"], said["width"])
    prompt, negative = said["prompt"], said["negative_prompt"]
    for text in (prompt, negative):
        if options.prompt_weights and isinstance(text, str):
            weighted(text)
    return read(
        family, spoken(pipe, prompt) if isinstance(prompt, str) else prompt, negative,
        height=height, width=width, num_inference_steps=said["num_inference_steps"],
        guidance_scale=said["guidance_scale"], num_images_per_prompt=options.n, seed=said["seed"],
        chosen=spaced(pipe, options.sampler, options.spacing), strength=options.strength,
        output_type="pil", ways={}, details=details(options),
    )  # fmt: skip


def names(line: Line, place: int, times: int) -> list[str]:
    """The files of a line: their numbers among all, or its name, numbered from 1 if there are several."""
    if line.name is None:
        return [f"{place * times + j:06d}.png" for j in range(times)]
    return [f"{line.name}.png"] if times == 1 else [f"{line.name}-{j + 1}.png" for j in range(times)]


def batches(found: list[Drawing], most: int) -> list[list[Drawing]]:
    """The images in groups that are drawn at once."""
    groups = groupby(sorted(found, key=lambda drawing: drawing.kind), lambda drawing: drawing.kind)
    kinds = [list(group) for _, group in groups]
    return [kind[at : at + most] for kind in kinds for at in range(0, len(kind), most)]


def content(path: Path) -> bytes:
    """The bytes of a file, none if it is not there. Raises InputError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; move it away") from error


def is_whole(data: bytes) -> bool:
    """Whether these are all of a PNG file's chunks: of each a length, a kind, the content and a CRC."""
    at = len(SIGNATURE) if data.startswith(SIGNATURE) else len(data)
    while len(data) >= at + 12:
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, crc = data[at + 4 : at + 8], int.from_bytes(data[end - 4 : end], "big")
        if len(data) < end or zlib.crc32(data[at + 4 : end - 4]) != crc:
            return False
        if kind == b"IEND":
            return True
        at = end
    return False


def is_torn(data: bytes) -> bool:
    """Whether the bytes can be of a PNG file that was never finished: its first ones, or zeros."""
    head = data[: len(SIGNATURE)]
    return SIGNATURE.startswith(head) or not any(head)


def plain(said: dict[str, Any]) -> dict[str, Any]:
    """Parameters as they come out of a file."""
    found: dict[str, Any] = json.loads(json.dumps(said))
    return found


def listed(said: dict[str, Any], wanted: Iterable[str]) -> str:
    """Some of the parameters in words."""
    return ", ".join(f"{name} {shown(said[name])}" if name in said else f"no {name}" for name in wanted)


def mark(pipe: ldm.Pipeline) -> str:
    """What tells models apart: 64 bits that depend on some numbers of each tensor."""
    told = sha256()
    for network in pipe.networks():
        for tensor in network.state_dict().values():
            step = max(1, tensor.numel() // SAMPLES)
            told.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            told.update(tensor.reshape(-1)[::step].float().cpu().numpy().tobytes())
    return told.hexdigest()[:16]


def seen(given: Pictures) -> str:
    """The same of the pictures."""
    told = sha256()
    for picture in (given.image, given.mask):
        if picture is not None:
            told.update(f"{picture.mode} {picture.size}".encode() + picture.tobytes())
    return told.hexdigest()[:16]
