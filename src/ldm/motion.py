"""Moving pictures: GIF and APNG."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ldm.checks import number
from ldm.errors import InputError
from ldm.image import write


def animate(images: Sequence[Image.Image], path: str | Path, *, seconds: float = 0.1, rest: int = 1) -> None:
    """Pictures of one size one after another, again and again, as .gif or .png (APNG).

    seconds  each is shown; rest: how many times as long the last one
    Raises InputError for another kind of file, for no pictures, and where the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".png"):
        raise InputError(f"{path} must end in .gif or .png, for those are what moves")
    if not images or len({image.size for image in images}) > 1:
        raise InputError("a moving picture needs at least one image, and all of one size")
    pause = round(1000 * number("seconds", seconds, 0.01, 60))
    durations = [pause] * (len(images) - 1) + [pause * rest]
    first, *others = images
    write(first, path, save_all=True, append_images=others, duration=durations, loop=0)
