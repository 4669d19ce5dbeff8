"""A picture as it is trained on: covering its frame, mirrored or not, and cut.

    scale = max(W / w, H / h)        left = u (scale w - W), top = v (scale h - H)

u, v and whether it is mirrored are drawn from (seed, epoch, index) alone. Only what is kept is resized: of a
thin picture the whole would be huge.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import ceil, floor
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ldm.errors import InputError
from ldm.noise import mixed
from ldm.reading import ORIENTATION, layers, on_white, told, upright, upright_size
from ldm.training.buckets import Size
from ldm.training.folders import Prompt

CROPS = ("center", "random")
REMEDY = "take it out, or put it there whole"
PIXELS = b"2"  # of keys: it goes up where the same bytes and frame become other pixels


class DamagedError(InputError):
    """An image, or what is told of it, that cannot be read: another takes its place."""


class Frame(NamedTuple):
    """What of a picture is seen."""

    size: Size  # width and height in pixels
    u: float = 0.5  # how far to the right the cut lies, 0 to 1
    v: float = 0.5  # how far down
    mirrored: bool = False  # left and right, before it is cut


class Item(NamedTuple):
    """An image to train on, and what is told of it. Sizes are (height, width), as `Details` has them."""

    image: Tensor  # float32 [3 H W] in [-1, 1]; of `Latents` its moments, [2c h w]
    prompt: Prompt  # its text, its class, or None
    name: str
    original: tuple[int, int]  # of the whole picture in its file, in pixels
    corner: tuple[int, int]  # top and left of the cut, in pixels of the picture that covers the frame


class Source(NamedTuple):
    """An image as its file has it, and how it is to be seen."""

    data: bytes
    frame: Frame
    prompt: Prompt
    name: str

    @property
    def key(self) -> str:
        """A hash of all that its item's numbers are made of."""
        return digest([PIXELS, self.data, repr(tuple(self.frame)).encode()])

    def item(self) -> Item:
        """The image, read as `ldm.reading` says. Raises DamagedError."""
        (w, h), u, v, mirrored = self.frame
        with damage(), told(self.name, REMEDY), Image.open(io.BytesIO(self.data)) as picture:
            own = upright_size(picture, self.name)
            wide, high = covering(own, (w, h))
            left, top = int(u * (wide - w + 1)), int(v * (high - h + 1))
            x = wide - w - left if mirrored else left  # before it is mirrored
            whole = on_white(layers(upright(picture, self.name)))
            pixels = np.array(part(whole, (wide, high), (x, top), (w, h)))
        cut = torch.from_numpy(np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels))
        image = rearrange(cut.float() / 127.5 - 1, "h w c -> c h w").contiguous()
        return Item(image, self.prompt, self.name, (own[1], own[0]), (top, left))


def drawn(size: Size, crop: str, flip: float, *numbers: int) -> Frame:
    """The frame of an image, from numbers such as its seed, epoch and index.

    crop  "center" or "random"; flip: how often it is mirrored, 0 to 1
    """
    u, v, m = torch.rand(3, generator=generator(*numbers), dtype=torch.float64, device="cpu").tolist()
    return Frame(size, u, v, m < flip) if crop == "random" else Frame(size, mirrored=m < flip)


def generator(*numbers: int) -> torch.Generator:
    """A generator whose seed depends on every bit of the numbers, and on their order."""
    seed = 0
    for n in numbers:
        seed = mixed(seed ^ n)
    return torch.Generator().manual_seed(seed)


def covering(own: Size, frame: Size) -> Size:
    """The smallest size of an image's shape, in whole pixels, that covers a frame. Widths and heights."""
    (w, h), (wide, high) = own, frame
    if w * high > h * wide:
        return max(wide, round(w * high / h)), high
    return wide, max(high, round(h * wide / w))


def part(picture: Image.Image, whole: Size, corner: Size, size: Size) -> Image.Image:
    """What lies at a corner (left, top) of a picture that is brought to the size `whole`."""
    (left, right, x0, x1), (top, bottom, y0, y1) = map(span, corner, size, whole, picture.size)
    near = picture.crop((left, top, right, bottom))
    return near.resize(size, Image.Resampling.LANCZOS, box=(x0, y0, x1, y1))


def span(start: int, length: int, whole: int, own: int) -> tuple[int, int, float, float]:
    """Where a stretch of a side of `whole` pixels lies in one of `own`, of which it is made.

    Returns the first and the last of the pixels that it depends on, and where it begins and ends after the
    first.
    """
    begin, end = start * own / whole, (start + length) * own / whole
    reach = 3 * max(1, own / whole) + 1  # of Lanczos' filter
    first, last = max(0, floor(begin - reach)), min(own, ceil(end + reach))
    return first, last, begin - first, end - first


def seen_size(data: bytes, name: str) -> Size:
    """Width and height of a picture as it is seen, from its header where its kind allows it.

    Raises DamagedError for what is no picture.
    """
    with damage(), told(name, REMEDY), Image.open(io.BytesIO(data)) as picture:
        w, h = picture.size
        return (h, w) if picture.getexif().get(ORIENTATION) in (5, 6, 7, 8) else (w, h)


@contextmanager
def damage() -> Iterator[None]:
    """An InputError in the block is told as a DamagedError."""
    try:
        yield
    except InputError as error:
        raise DamagedError(str(error)) from error


def digest(parts: Iterable[bytes]) -> str:
    """A hash of several texts of bytes, 64 hexadecimal digits; where one ends matters."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()
