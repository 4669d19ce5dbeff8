"""Folders of small pictures, made by hand."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A picture of a size (width, height) that no other number has; no part of it is like another."""
    w, h = size
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (h, w, 3), np.uint8))


def png(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    buffer = io.BytesIO()
    picture(number, size).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """The files of a folder, by their names in it."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return folder


def album(folder: Path, number: int, sizes: Sequence[tuple[int, int]] = ((24, 16),)) -> Path:
    """Pictures 00.png, 01.png, … with metadata; their sizes take turns."""
    names = [f"{i:02}.png" for i in range(number)]
    lines = [json.dumps({"file_name": name, "text": f"text {i}"}) for i, name in enumerate(names)]
    pictures = {name: png(i, sizes[i % len(sizes)]) for i, name in enumerate(names)}
    return write(folder, {**pictures, "metadata.jsonl": "\n".join(lines)})
