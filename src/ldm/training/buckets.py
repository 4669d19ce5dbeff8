"""Sizes of about one area, so that images of all shapes are trained on without much being cut off.

    short = size/2, …, size in steps        long = size² / short, to the nearest step

A size's area misses size² by at most step / (2 size) of it (NovelAI 2022; Podell et al. 2023, sec. 2.2).
"""

from math import log

from ldm.checks import whole
from ldm.errors import InputError

MOST_SIDE = 16384  # pixels

Size = tuple[int, int]  # width and height


def sizes(size: int, step: int = 64) -> tuple[Size, ...]:
    """Widths and heights in pixels, multiples of `step`, narrow ones first; the square is one of them.

    size  side of the square in pixels, a multiple of step
    step  64, or the unit of a family (`family.unit`)
    Sides differ up to four times. Raises InputError.
    """
    size = whole("size", size, MOST_SIDE)
    step = whole("step", step, size)
    if size % step:
        raise InputError(f"size {size} is not a multiple of {step}; try {max(1, size // step) * step}")
    shorts = [short for short in range(step, size + 1, step) if 2 * short >= size]
    flat = {(step * round(size * size / short / step), short) for short in shorts}
    return tuple(sorted(flat | {(h, w) for w, h in flat}, key=lambda wh: wh[0] / wh[1]))


def nearest(own: Size, choices: tuple[Size, ...]) -> int:
    """Which size has the aspect ratio nearest to an image's; of two as near the first.

    own  width and height of the image in pixels
    """
    aspect = log(own[0] / own[1])
    return min(range(len(choices)), key=lambda i: abs(log(choices[i][0] / choices[i][1]) - aspect))
