"""A file of prompts, read line by line; blank lines count for nothing.

.txt     a prompt, as it stands
.jsonl   an object {"prompt": "a cat", "negative": "a dog", "seed": 7, "name": "cat", "steps": 20, …};
         what a line does not say, the command says
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ldm.checks import nearest, shown, whole
from ldm.errors import InputError
from ldm.request import MOST_SIDE
from ldm.rows import Prompt

MOST_BYTES = 2**28
MOST_NAME = 200  # bytes; file systems take 255, and a file that is being written has a longer name
NAME = re.compile(r"\w(?:[\w .+-]*\w)?")


class Line(NamedTuple):
    """What one line says."""

    place: str  # file and line, for messages
    told: dict[str, Any]  # by the keywords of a pipeline; always a prompt
    name: str | None = None  # of the file to be written, without its end


def read_lines(path: Path) -> list[Line]:
    """The lines of a file of prompts, at least one. Raises InputError that names the line."""
    read = KINDS.get(path.suffix.lower())
    if read is None:
        raise InputError(
            f"--prompts {path} must end in .txt, with a prompt in each line, or .jsonl, with an object"
        )
    lines = []
    for number, text in enumerate(io.StringIO(text_of(path), newline=None), 1):
        if text.strip():
            with within(place := f"{path}, line {number}"):
                lines.append(read(place, text.removesuffix("\n")))
    if not lines:
        raise InputError(f"--prompts {path} has no prompts; write one in each line")
    return lines


@contextmanager
def within(place: str) -> Iterator[None]:
    """What is wrong in the block is told with its place."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def text_of(path: Path) -> str:
    """All that a file says. Raises InputError for what is no text in UTF-8."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"--prompts {path} is no file")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"--prompts {path} has more than {MOST_BYTES} bytes; split it")
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: {error.reason}; write the file as UTF-8") from error
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--prompts {path} cannot be read: {reason}; give another file") from error


def of_text(place: str, text: str) -> Line:
    """A line that is a prompt."""
    return Line(place, {"prompt": text})


def of_json(place: str, text: str) -> Line:
    """A line that is an object. Raises InputError."""
    try:
        said = json.loads(text, object_pairs_hook=once)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{error}; write a JSON object in each line") from error
    if not isinstance(said, dict):
        raise InputError(f'it is {shown(said)}, not a JSON object, such as {{"prompt": "a cat"}}')
    for key in said:
        if key not in KEYS:
            raise InputError(f"unknown key {shown(key)}; {nearest(key, KEYS)}")
    if "prompt" not in said:
        raise InputError('it has no "prompt"')
    found = {key: KEYS[key][1](key, value) for key, value in said.items() if value is not None}
    name = found.pop("name", None)
    return Line(place, {"prompt": None} | {KEYS[key][0]: value for key, value in found.items()}, name)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ. Raises InputError."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"it has {shown(key)} twice; take one out")
        found[key] = value
    return found


def prompt(key: str, value: Any) -> Prompt:
    """A text or the number of a class."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"{key} must be a text or the number of a class, not {shown(value)}")
    return value


def number(key: str, value: Any) -> float:
    """A number; a pipeline says of which range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{key} must be a number, not {shown(value)}")
    return value


def named(key: str, value: Any) -> str:
    """What a file can be called everywhere, without its end."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise InputError(
            f"{key} {shown(value)} must be of letters, digits, blanks and . _ + -, and begin and end "
            "with a letter or digit"
        )
    if value.lower().endswith(".png"):
        raise InputError(f"{key} {shown(value)} ends in .png, which the file gets by itself; leave it out")
    if len(value.encode()) > MOST_NAME:
        raise InputError(f"{key} {shown(value)} is longer than {MOST_NAME} bytes; shorten it")
    return value


KEYS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {  # a key, to the keyword it is and how it is read
    "prompt": ("prompt", prompt),
    "negative": ("negative_prompt", prompt),
    "seed": ("seed", lambda key, value: whole(key, value, 2**63 - 1, least=0)),
    "name": ("name", named),
    "width": ("width", lambda key, value: whole(key, value, MOST_SIDE)),
    "height": ("height", lambda key, value: whole(key, value, MOST_SIDE)),
    "steps": ("num_inference_steps", lambda key, value: whole(key, value, 2**31)),
    "guidance": ("guidance_scale", number),
}
KINDS = {".txt": of_text, ".jsonl": of_json}
