"""Features of images as a table [n d]: read from a file, or computed from the pictures of a folder.

    from_file("real.safetensors")                      one tensor [n d]; or real.npy
    from_folder("drawn", extractor("clip:FOLDER"))     every picture in the folder and below

Pictures are given as they are; what looks at them brings them to the size it likes.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ldm.checkpoint.files import File
from ldm.checks import dense, whole
from ldm.errors import InputError
from ldm.evaluation.distances import numbers
from ldm.evaluation.extractors import Extract, first_line
from ldm.reading import SUFFIXES, colours, told, upright_size

REMEDY = "take it out, or put it there whole"
MOST_BATCH = 65_536


def from_file(path: str | Path) -> Tensor:
    """The features of a file, float64 [n d].

    path  .safetensors with one tensor, of any name, or .npy; nothing in it is executed
    Raises InputError for another file, or numbers that are not finite; CheckpointError for a damaged one.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"{path} is neither a file of features nor a folder of pictures")
    if path.suffix == ".npy":
        return numbers(str(path), npy(path), 2)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} must end in .safetensors or .npy, as files of features do")
    file = File.open(path)
    if len(file.entries) != 1:
        some = ", ".join([*islice(file.entries, 3)])
        raise InputError(f"{path} has {len(file.entries)} tensors ({some}); features are one, [n d]")
    (name,) = file.entries
    return numbers(f"{path}: {name}", file.read(name), 2)


def npy(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped. Raises InputError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a damaged header numpy raises several kinds
        raise InputError(f"{path} cannot be read as an array: {first_line(error)}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an archive of arrays; save one array with np.save")
    return array


def from_folder(folder: str | Path, extract: Extract, *, batch: int = 32, progress: bool = True) -> Tensor:
    """The features of all pictures of a folder, by name, [n d] on the CPU, in the dtype of `extract`.

    extract  images, float32 [b 3 H W] in [-1, 1], to [b d]; each picture has its own size, and only those
             of one size are together. `extractors` has some
    batch    pictures at once, at most
    Pictures are read as `ldm.reading` says. Raises InputError for a folder without pictures, for the first
    one that is damaged, and where `extract` gives anything else.
    """
    batch = whole("batch", batch, MOST_BATCH)
    paths = pictures(folder)
    parts: list[Tensor] = []
    with torch.no_grad(), tqdm(total=len(paths), disable=not progress, leave=False) as bar:
        for images in batches(paths, batch):
            b = len(images)
            part = dense("what features are made of images", extract(images), f"[{b} d]", (b, None))
            if parts and part.shape[1] != parts[0].shape[1]:
                raise InputError(
                    f"features have {parts[0].shape[1]} numbers, but {part.shape[1]} of pictures of "
                    f"{images.shape[3]}×{images.shape[2]} pixels; make the numbers as many for every size"
                )
            parts.append(part.cpu())
            bar.update(b)
    return torch.cat(parts)


def pictures(folder: str | Path) -> list[Path]:
    """The pictures in a folder and in those in it, by name; hidden ones do not count. Raises InputError."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give one with pictures")
    found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    seen = [path for path in found if not any(x.startswith(".") for x in path.relative_to(root).parts)]
    if not seen:
        raise InputError(f"{root} has no pictures; put some in, of {' '.join(SUFFIXES)}")
    return sorted(seen)


def batches(paths: Iterable[Path], most: int) -> Iterator[Tensor]:
    """The pictures in order, float32 [b 3 H W] in [-1, 1], neighbours of one size together."""
    for _, alike in groupby(map(read, paths), lambda image: image.shape):
        while part := list(islice(alike, most)):
            yield torch.stack(part)


def read(path: Path) -> Tensor:
    """A picture at its own size, float32 [3 H W] in [-1, 1]. Raises InputError for a damaged one."""
    name = str(path)
    with told(name, REMEDY), Image.open(path) as picture:
        pixels = torch.from_numpy(colours(picture, upright_size(picture, name), name))
    return rearrange(pixels.float() / 127.5 - 1, "h w c -> c h w")
