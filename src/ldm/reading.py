"""PIL images in: upright, opaque, of a size, as bytes.

An image counts as Pillow shows it: the frame it stands at, which is the first of a file just opened; 16 bits
of a colour cut to 8; without its colour profile. EXIF's orientation is undone, and transparent parts lie on
white, as on paper. In a mask they may mean either, so there they are refused. A large image is made smaller
as bytes; more than `MOST_PIXELS` are refused before they are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from ldm.errors import InputError

MOST_PIXELS = 178_956_970  # where Pillow too refuses a file, unless it is told otherwise
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # of pictures in a folder
ORIENTATION = 0x0112  # in EXIF
TURNS = {  # an orientation, to what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STRAIGHT = {"RGBa": "RGBA", "La": "LA"}  # colours times alpha, to colours
SEE_THROUGH = ("1", "L", "P", "RGB", "LA", "PA", "RGBA")  # modes that can be: by a channel, or by one colour


def colours(image: Image.Image, size: tuple[int, int], name: str) -> np.ndarray:
    """An image as uint8 [H W 3], brought to `size` (width, height), squeezed if its shape is another.

    Raises InputError for modes I and F, for too many pixels, and for what cannot be read.
    """
    with told(name):
        picture = on_white(layers(upright(image, name)))
        return np.array(sized(picture, size, Image.Resampling.LANCZOS))


def luma(image: Image.Image, size: tuple[int, int], name: str) -> np.ndarray:
    """An image as uint8 [H W], brought to `size` (width, height); a colour counts as Rec. 601's luma.

    Raises InputError as `colours` does, and for transparent pixels.
    """
    with told(name):
        # smaller first: no pixel is mixed with another
        picture = layers(sized(upright(image, name), size, Image.Resampling.NEAREST))
        if picture.mode == "RGBA" and np.asarray(picture)[..., 3].min() < 255:
            raise InputError(
                f"{name} is transparent in places, which may mean either; lay it on black to keep them, "
                "on white to repaint them"
            )
        return np.array(picture.convert("L"))


def upright_size(image: Image.Image, name: str) -> tuple[int, int]:
    """Width and height as it is seen. Raises InputError as `colours` does."""
    with told(name):
        w, h = checked(image, name).size
        return (h, w) if image.getexif().get(ORIENTATION) in (5, 6, 7, 8) else (w, h)


@contextmanager
def told(name: str, remedy: str = "give one that is whole and open") -> Iterator[None]:
    """Whatever goes wrong in the block is told as an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of a damaged file Pillow raises a dozen kinds, SyntaxError among them
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            why = "it is damaged, or of no kind that Pillow knows"
        raise InputError(f"{name} cannot be read as a picture: {why}; {remedy}") from error


def checked(image: Image.Image, name: str) -> Image.Image:
    """The image itself, loaded. Raises InputError for what must not be loaded, and before it is."""
    w, h = image.size
    if not w * h:
        raise InputError(f"{name} is a PIL image of {w}×{h} pixels; give one with some")
    if w * h > MOST_PIXELS:
        raise InputError(f"{name} has {w}×{h} pixels, more than {MOST_PIXELS} in all; make it smaller first")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise InputError(f"{name} has PIL's mode {image.mode}, of no certain range; scale it to 8 bits")
    image.load()
    return image


def upright(image: Image.Image, name: str) -> Image.Image:
    """The image as it is seen; itself if it is not turned."""
    turn = TURNS.get(checked(image, name).getexif().get(ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def layers(image: Image.Image) -> Image.Image:
    """The image as RGB, or as RGBA if it can be seen through."""
    if image.mode in STRAIGHT:
        image = image.convert(STRAIGHT[image.mode])
    through = image.mode in SEE_THROUGH and image.has_transparency_data
    if through and image.mode == "P":
        image = image.copy()  # because Pillow writes the transparency into the palette
    mode = "RGBA" if through else "RGB"
    return image if image.mode == mode else image.convert(mode)


def on_white(image: Image.Image) -> Image.Image:
    """RGB or RGBA -> RGB: alpha colour + (1 - alpha) white."""
    if image.mode == "RGB":
        return image
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image)
    return paper


def sized(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """The image of a size; itself if it has it."""
    return image if image.size == size else image.resize(size, how)
