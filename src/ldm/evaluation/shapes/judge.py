"""The judge: does a picture show what its prompt asked for? No network, only the world's own geometry.

1. The ground is the palette ground nearest to the median of the picture's border.
2. A pixel's strangeness is its distance from the ground; patches of strange pixels that touch are the shapes.
3. A patch's colour is the palette colour nearest to the median of its most strange pixels.
4. A pixel p of a patch is covered by (p - ground)·(colour - ground) / |colour - ground|². Every kind is drawn
   as large as the patch and where it is; the one whose coverage overlaps the patch's best names it, where
   overlap is the sum of minima over the sum of maxima.
5. Wants and patches are paired so that most is right; then each thing asked for is checked.
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import permutations, product

import numpy as np

from ldm.evaluation.shapes.captions import Prompt, Want
from ldm.evaluation.shapes.world import COLOURS, GROUNDS, KINDS, SIDE, cell_of, cover, size_of

STRANGE = 45.0  # distance from the ground, in 0..255 RGB, from which a pixel is not ground
NEAR = 60.0  # a colour further than this from every palette colour has no name
FIT = 0.75  # overlap that a shape needs to be recognised
DUST = 6  # pixels; smaller patches are not counted


@dataclass(frozen=True)
class Found:
    """One shape as it was seen; an empty name means that none fits."""

    kind: str
    colour: str
    size: str
    x: float  # the centre, pixels from the left edge
    y: float  # pixels from the top edge
    fit: float  # overlap with the best kind, 0 to 1


@dataclass(frozen=True)
class Verdict:
    """What is right; a thing that the prompt left free is right."""

    count: bool
    colour: bool
    shape: bool
    size: bool
    place: bool  # position on the grid, or relation of two shapes
    ground: bool

    @property
    def right(self) -> bool:
        """Everything."""
        return all(getattr(self, field.name) for field in fields(self))


def judge(image: np.ndarray, prompt: Prompt) -> Verdict:
    """Check a picture [64 64 3], uint8 or float in [0, 1], against what its prompt wants."""
    ground, found = look(image)
    ground_right = prompt.ground is None or prompt.ground == ground
    if len(found) != len(prompt.wants):
        return Verdict(False, False, False, False, False, ground_right)
    checks = [_check(prompt, order, ground_right) for order in permutations(found)]
    return max(checks, key=lambda verdict: sum(getattr(verdict, field.name) for field in fields(verdict)))


def look(image: np.ndarray) -> tuple[str, list[Found]]:
    """The ground's name and the shapes in a picture [64 64 3], uint8 or float in [0, 1]."""
    pixels = image.astype(np.float64) * (1.0 if image.dtype == np.uint8 else 255.0)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(edge, axis=0)
    strangeness = np.linalg.norm(pixels - ground, axis=-1)
    patches = [patch for patch in _patches(strangeness > STRANGE) if patch.sum() >= DUST]
    return _nearest(ground, GROUNDS), [_see(pixels, ground, strangeness, patch) for patch in patches]


def _check(prompt: Prompt, found: tuple[Found, ...], ground: bool) -> Verdict:
    pairs = list(zip(prompt.wants, found, strict=True))
    return Verdict(
        count=True,
        colour=all(want.colour == seen.colour for want, seen in pairs),
        shape=all(want.kind == seen.kind for want, seen in pairs),
        size=all(want.size in (None, seen.size) for want, seen in pairs),
        place=all(_in_cell(want, seen) for want, seen in pairs) and _related(prompt.relation, found),
        ground=ground,
    )


def _in_cell(want: Want, seen: Found) -> bool:
    return want.cell is None or want.cell == cell_of(seen.x, seen.y)


def _related(relation: str | None, found: tuple[Found, ...]) -> bool:
    """Whether the first shape stands so to the second: further along the right axis, and mostly along it."""
    if relation is None:
        return True
    first, second = found
    right, down = first.x - second.x, first.y - second.y
    along, across = (right, down) if relation in ("left", "right") else (down, right)
    signed = along if relation in ("right", "below") else -along
    return signed > 8 and signed > abs(across)


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    gaps = {name: float(np.linalg.norm(colour - np.array(value))) for name, value in palette.items()}
    best = min(gaps, key=gaps.__getitem__)
    return best if gaps[best] < NEAR else ""


def _patches(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask, corners counting as touching. [64 64] bool -> masks."""
    left, parts = mask.copy(), []
    while left.any():
        part = np.zeros_like(mask)
        part.flat[int(left.argmax())] = True
        size = 0
        while part.sum() > size:
            size = part.sum()
            for axis in (0, 1):
                part = part | _shifted(part, axis, 1) | _shifted(part, axis, -1)
            part &= left
        parts.append(part)
        left &= ~part
    return parts


def _shifted(mask: np.ndarray, axis: int, by: int) -> np.ndarray:
    moved = np.roll(mask, by, axis)
    np.moveaxis(moved, axis, 0)[0 if by > 0 else -1] = False
    return moved


def _see(pixels: np.ndarray, ground: np.ndarray, strangeness: np.ndarray, patch: np.ndarray) -> Found:
    core = patch & (strangeness >= np.quantile(strangeness[patch], 0.6))
    colour = np.median(pixels[core], axis=0)
    way = colour - ground
    covered = np.clip((pixels - ground) @ way / max(way @ way, 1e-9), 0, 1) * _grown(patch)
    if covered.max() <= 0.5:  # opposite colours, whose median is none of them
        return _nothing(patch)
    rough = {kind: _rough(kind, covered) for kind in KINDS}
    likely = sorted(KINDS, key=lambda kind: -_overlap(cover(kind, *rough[kind]), covered))[:3]
    overlap, radius, x, y, kind = max((*_fine(kind, covered, *rough[kind]), kind) for kind in likely)
    name = kind if overlap >= FIT else ""
    return Found(name, _nearest(colour, COLOURS), size_of(radius), x, y, overlap)


def _nothing(patch: np.ndarray) -> Found:
    """A patch that no kind and no colour fits, as large as a circle of its area."""
    y, x = (float(place.mean()) + 0.5 for place in np.nonzero(patch))
    return Found("", "", size_of(float(np.sqrt(patch.sum() / np.pi))), x, y, 0.0)


def _grown(patch: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        patch = patch | _shifted(patch, axis, 1) | _shifted(patch, axis, -1)
    return patch


def _rough(kind: str, covered: np.ndarray) -> tuple[float, float, float]:
    """Radius and centre that give a kind the extent of a coverage."""
    low, high = _extent(covered)
    unit_low, unit_high = _unit_extent(kind)
    radius = float(np.mean((high - low) / (unit_high - unit_low)))
    x, y = (low + high) / 2 - radius * (unit_low + unit_high) / 2
    return max(radius, 1.0), float(x), float(y)


def _fine(
    kind: str, covered: np.ndarray, radius: float, x: float, y: float
) -> tuple[float, float, float, float]:
    """The best overlap near a rough fit, and its radius and centre."""
    tries = product(*((value - 0.4, value, value + 0.4) for value in (radius, x, y)))
    return max((_overlap(cover(kind, r, u, v), covered), r, u, v) for r, u, v in tries)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def _extent(covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of a coverage along x and y, to a fraction of a pixel."""
    lows, highs = [], []
    for axis in (0, 1):
        line = covered.max(axis=axis)
        inside = np.flatnonzero(line > 0.5)
        first, last = int(inside[0]), int(inside[-1])
        lows.append(first - (line[first - 1] if first else 0.0))
        highs.append(last + 1 + (line[last + 1] if last + 1 < SIDE else 0.0))
    return np.array(lows), np.array(highs)


@lru_cache
def _unit_extent(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The same of the kind itself, for radius 1 and centre 0."""
    low, high = _extent(cover(kind, 20.0, SIDE / 2, SIDE / 2))
    return (low - SIDE / 2) / 20, (high - SIDE / 2) / 20
