"""The images of a folder, each as an epoch sees it."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ldm.checks import number, one_of, whole
from ldm.errors import InputError
from ldm.training.buckets import MOST_SIDE, Size, nearest, sizes
from ldm.training.folders import Entry, entries
from ldm.training.framing import CROPS, DamagedError, Item, Source, drawn, generator, seen_size

MOST_BAD = 100
MOST_NUMBER = 2**63 - 1
ORDER, FRAME, PLAN = range(3)  # what is drawn, so that no two of them share their draws

log = logging.getLogger("ldm")


class Images:
    """The images of a folder, of whatever kind `folders` knows; `len` is how many there are.

    size      side in pixels of the images; with buckets, of the square that has their area
    crop      "center" or "random": which part is kept of an image that is not of the frame's shape
    flip      how often left and right are exchanged, 0 to 1
    buckets   the step in pixels of sizes of all shapes, such as 64 (see `buckets.sizes`); None: squares.
              Images are then opened here, PNGs wholly, and those that cannot be are left out for good;
              of others the damage shows when they are read
    seed      of the order, the crops and the flips, 0 to 2^63 - 1
    most_bad  how many damaged images are passed over; one more is an error
    Raises InputError.
    """

    def __init__(
        self, path: str | Path, *, size: int, crop: str = "center", flip: float = 0.0,
        buckets: int | None = None, seed: int = 0, most_bad: int = MOST_BAD,
    ):  # fmt: skip
        self.crop, self.flip = one_of("crop", crop, CROPS), number("flip", flip, 0, 1)
        self.seed = whole("seed", seed, MOST_NUMBER, least=0)
        self.most_bad = whole("most_bad", most_bad, MOST_NUMBER, least=0)
        size = whole("size", size, MOST_SIDE)
        found = entries(path)
        if buckets is None:
            self.sizes: tuple[Size, ...] = ((size, size),)
            self.entries, places = found, [0] * len(found)
        else:
            self.sizes = sizes(size, buckets)
            self.entries, places = sorted_out(found, self.sizes, self.most_bad)
        self.bucket = np.array(places)  # of each image: a place in `sizes`

    def __len__(self) -> int:
        return len(self.entries)

    def order(self, epoch: int) -> np.ndarray:
        """The numbers of all images in the order of an epoch, int64 [n]."""
        return shuffled(len(self), self.seed, ORDER, epoch)

    def members(self, bucket: int, epoch: int) -> np.ndarray:
        """Those of a bucket, a place in `sizes`, in the order of an epoch."""
        order = self.order(epoch)
        return order if len(self.sizes) == 1 else order[self.bucket[order] == bucket]

    def item(self, epoch: int, index: int) -> Item:
        """An image as an epoch sees it. Raises DamagedError for one that cannot be read."""
        return self.source(epoch, index).item()

    def source(self, epoch: int, index: int, bucket: int | None = None) -> Source:
        """The bytes of an image's file, and the frame that an epoch sees it in. Raises DamagedError.

        bucket  of whose size the frame is; None: its own
        """
        path, name, prompt = self.entries[index]
        size = self.sizes[self.bucket[index] if bucket is None else bucket]
        return Source(
            read(path), drawn(size, self.crop, self.flip, self.seed, FRAME, epoch, index), prompt, name
        )


@lru_cache(maxsize=4)  # an epoch and the one before it are asked for again and again
def shuffled(length: int, *numbers: int) -> np.ndarray:
    """The numbers below `length` in an order that other numbers decide, int64."""
    order = torch.randperm(length, generator=generator(*numbers), device="cpu").numpy()
    order.setflags(write=False)
    return order


def sorted_out(
    found: Sequence[Entry], choices: tuple[Size, ...], most_bad: int
) -> tuple[list[Entry], list[int]]:
    """The images that can be opened, and the bucket of each. Raises InputError."""
    kept, places, bad = [], [], dict[str, str]()
    for entry in found:
        try:
            places.append(nearest(seen_size(read(entry.path), entry.name), choices))
            kept.append(entry)
        except DamagedError as error:
            bad = passed_over(bad, {entry.name: str(error)}, most_bad)
    if not kept:
        raise InputError(f"none of the {len(found)} images can be read; {next(iter(bad.values()))}")
    return kept, places


def passed_over(known: Mapping[str, str], more: Mapping[str, str], most: int) -> dict[str, str]:
    """All damaged images by name; the new ones are logged. Raises InputError for more than `most`."""
    for name in more:
        if name not in known:
            log.warning("passed over: %s", more[name])
    every = {**known, **more}
    check_few(every, most)
    return every


def check_few(bad: Mapping[str, str], most: int) -> None:
    """Raises InputError for more than `most` damaged images."""
    if len(bad) > most:
        first = " | ".join(list(bad.values())[:3])
        raise InputError(f"{len(bad)} images are damaged, more than most_bad {most}; the first are: {first}")


def read(path: Path) -> bytes:
    """A file's bytes. Raises DamagedError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error
