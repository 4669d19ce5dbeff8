"""Which images a folder has, and what is said of them.

    metadata.jsonl, .csv   file_name and text of every image, wherever in the folder it lies
    caption files          a.png and a.txt (or a.caption) side by side, wherever in the folder they lie
    class folders          cat/1.png, dog/1.png: classes 0 and 1, the names in order
    images alone           nothing is said

A folder is of one kind. Files and folders whose names begin with a dot do not count; links are followed.
"""

import csv
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ldm.checks import shown, texts
from ldm.errors import InputError
from ldm.reading import SUFFIXES

CAPTIONS = (".txt", ".caption")
TABLES = ("metadata.jsonl", "metadata.csv")

log = logging.getLogger("ldm")
Prompt = str | int | None


class Entry(NamedTuple):
    """An image of a folder."""

    path: Path
    name: str  # from the folder on, with slashes
    prompt: Prompt  # its text, its class, or None


def entries(folder: str | Path) -> list[Entry]:
    """The images of a folder by name. Raises InputError for a folder that leaves a question."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give one with images")
    files = dict(sorted(walk(root)))
    pictures = [name for name in files if suffix(name) in SUFFIXES]
    tables = [name for name in TABLES if name in files]
    if not pictures and not tables:
        raise InputError(f"{root} has no images; put some in, of {' '.join(SUFFIXES)}")
    beside = captions(root, files, pictures)
    deep = [name for name in pictures if "/" in name and not tables and not beside]
    kinds = [*tables]
    kinds += [f"caption files such as {next(iter(beside.values()))}"] if beside else []
    kinds += [f"class folders such as {top(deep[0])}"] if deep else []
    kinds += ["images beside the class folders"] if deep and len(deep) < len(pictures) else []
    if len(kinds) > 1:
        raise InputError(f"{root} has {' and '.join(kinds)}; keep one kind, or give a folder inside it")
    if tables:
        prompts: dict[str, Any] = table(root, tables[0], pictures)
    elif beside:
        prompts = {name: read_text(files[beside[name]]).strip() for name in pictures}
        prompts = {name: checked(str(files[beside[name]]), text) for name, text in prompts.items()}
    elif deep:
        prompts = classes(root, pictures)
    else:
        prompts = dict.fromkeys(pictures)
    return [Entry(files.get(name, root / name), name, prompts[name]) for name in sorted(prompts)]


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file in a folder and the folders in it, by its name from there; a circle of links is cut."""
    seen = set()
    for where, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real in seen:
            continue
        seen.add(real)
        for file in (Path(where, name) for name in files if not name.startswith(".")):
            yield file.relative_to(root).as_posix(), file


def suffix(name: str) -> str:
    """The end of a file's name, in small letters."""
    return PurePosixPath(name).suffix.lower()


def top(name: str) -> str:
    """The first folder of a name."""
    return PurePosixPath(name).parts[0]


def captions(root: Path, files: dict[str, Path], pictures: list[str]) -> dict[str, str]:
    """The caption file of every image, or none at all."""
    stems = {picture.rpartition(".")[0] for picture in pictures}
    written: dict[str, str] = {}
    for name in (name for name in files if suffix(name) in CAPTIONS):
        stem = name[: -len(suffix(name))]
        if stem in written and stem in stems:
            raise InputError(f"{root} has {written[stem]} and {name} for one image; keep one of them")
        written[stem] = name
    found: dict[str, str] = {}
    taken: set[str] = set()
    for picture in pictures:
        caption = written.get(picture.rpartition(".")[0])
        if caption in taken:
            raise InputError(f"{root}: {caption} belongs to two images, {picture} is one; give each its own")
        if caption is not None:
            found[picture] = caption
            taken.add(caption)
    if found and (bare := [picture for picture in pictures if picture not in found]):
        remedy = "take the images out"
        if any("/" in picture for picture in pictures):
            remedy = f"for class folders take the others out, such as {next(iter(found.values()))}"
        raise InputError(
            f"{root}: {len(bare)} of {len(pictures)} images have no caption file, {bare[0]} is the first; "
            f"write them, or {remedy}"
        )
    if found and (spare := sorted(set(written.values()) - taken)):
        log.warning("%s: %d caption files have no image, %s is the first", root, len(spare), spare[0])
    return found


def classes(root: Path, pictures: list[str]) -> dict[str, int]:
    """The class of every image: the place of its folder among the folders."""
    names = sorted({top(name) for name in pictures})
    folders = sorted(each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
    if empty := sorted(set(folders) - set(names)):
        raise InputError(
            f"{root}: the class folder {empty[0]} has no images, so the classes' numbers would be in doubt; "
            "put some in, or remove it"
        )
    return {name: names.index(top(name)) for name in pictures}


def table(root: Path, name: str, pictures: list[str]) -> dict[str, str]:
    """The text of every image that metadata names; it names each image once, and none is left."""
    read = json_rows if name.endswith("l") else csv_rows
    said: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in read(root / name):
        where = f"{root / name} line {line}"
        for column in ("file_name", "text"):
            if not isinstance(row.get(column), str):
                raise InputError(f"{where} has no text {column!r}, only {shown(row)}; add it")
        file = inner(where, row["file_name"])
        if file in lines:
            raise InputError(f"{where} names {file} again, after line {lines[file]}; keep one of them")
        lines[file], said[file] = line, checked(where, row["text"])
    if missing := [file for file in said if not is_file(root / file)]:
        raise InputError(
            f"{root / name} line {lines[missing[0]]} names {missing[0]}, which is missing "
            f"({len(missing)} of {len(said)} are); put it there, or take the line out"
        )
    if silent := [picture for picture in pictures if picture not in said]:
        raise InputError(
            f"{root}: {len(silent)} images have no caption in {name}, {silent[0]} is the first; "
            "add them, or take the images out"
        )
    if not said:
        raise InputError(f"{root / name} is empty; write a line for every image")
    return said


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, and where they stand."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} line {number} is no JSON: {error}; correct it") from error
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} must be a JSON object, not {shown(row)}")
        yield number, row


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with a head, and where they end."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or ())
        if lost := {"file_name", "text"} - set(columns):
            raise InputError(f"{path} has no column {min(lost)}; its first line must be its columns' names")
        if twice := [name for at, name in enumerate(columns) if name and name in columns[:at]]:
            raise InputError(f"{path} line 1 has the column {shown(twice[0])} twice; keep one of them")
        for row in reader:
            if None in row:
                where = f"{path} line {reader.line_num}"
                raise InputError(f"{where} has more fields than columns; quote the text")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is no CSV: {error}; correct it") from error


def inner(where: str, name: str) -> str:
    """A file's name as it stands in metadata, if it stays in the folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise InputError(f"{where} names {shown(name)}, which is outside the folder; name files in it")
    return path.as_posix()


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that can be none is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a mark of its order."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}; convert it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def checked(where: str, text: str) -> str:
    """A text that encoders can take."""
    return texts(f"the text of {where}", [text])[0]
