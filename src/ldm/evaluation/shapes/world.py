"""The world: one to three coloured shapes on a coloured ground, 64 x 64 pixels, anti-aliased.

A shape is the set where a signed distance d(x, y) is negative; a pixel is covered by clip(1/2 - d, 0, 1), and

    image = coverage * colour + (1 - coverage) * ground.

Distances are in pixels, y points down, colours are RGB in 0..255.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ldm.errors import InputError

SIDE = 64
COLOURS = {
    "red": (220, 30, 40),
    "orange": (255, 145, 20),
    "yellow": (250, 225, 50),
    "green": (40, 170, 60),
    "cyan": (50, 210, 220),
    "blue": (40, 90, 235),
    "purple": (140, 50, 190),
    "pink": (255, 110, 180),
}
GROUNDS = {
    "black": (15, 15, 18),
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
    "navy": (20, 28, 80),
    "beige": (225, 205, 170),
    "brown": (90, 55, 35),
}
SIZES = {"small": (7.7, 8.7), "large": (12.8, 14.0)}  # radii in pixels
RELATIONS = ("left", "right", "above", "below")
HELD_OUT = frozenset(
    {
        ("purple", "triangle"),
        ("yellow", "star"),
        ("green", "ring"),
        ("red", "crescent"),
        ("cyan", "heart"),
    }
)  # pairs that no training scene shows


def _box(x: np.ndarray, y: np.ndarray, w: float, h: float) -> np.ndarray:
    return np.maximum(np.abs(x) - w, np.abs(y) - h)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    slope = np.hypot(1.9, 1.0)  # the unit triangle: apex (0, -1), base from (-1, 0.9) to (1, 0.9)
    return np.maximum((1.9 * np.abs(x) - (y + 1)) / slope, y - 0.9)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    fifth, inner = 2 * np.pi / 5, 0.45
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)  # folded about one point of the star
    radius = np.hypot(x, y)
    tip, notch = np.array([0.0, 1.0]), inner * np.array([np.sin(fifth / 2), np.cos(fifth / 2)])
    normal = np.array([tip[1] - notch[1], notch[0] - tip[0]])
    normal = normal / np.hypot(*normal)
    return radius * (normal[0] * np.sin(angle) + normal[1] * np.cos(angle)) - normal[1]


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lobe = np.hypot(np.abs(x) - 0.48, y + 0.38) - 0.52
    point = _polygon(np.abs(x), y, (0.0, 0.95), (0.86, -0.02))
    return np.minimum(lobe, np.maximum(np.maximum(point, -y - 0.4), np.abs(x) - 0.9))


def _polygon(x: np.ndarray, y: np.ndarray, a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
    """Signed distance from the line through a and b, negative on the left of a -> b (y down)."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    return ((y - a[1]) * dx - (x - a[0]) * dy) / np.hypot(dx, dy)


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    head = np.maximum((np.abs(x) - (y + 1) * 0.95) / np.hypot(1, 0.95), y)
    return np.minimum(head, _box(x, y - 0.45, 0.34, 0.55))


# unit-radius signed distances, x right and y down
KINDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: _box(x, y, 0.88, 0.88),
    "triangle": _triangle,
    "star": _star,
    "diamond": lambda x, y: (1.15 * np.abs(x) + np.abs(y) - 1) / np.hypot(1.15, 1),
    "cross": lambda x, y: np.minimum(_box(x, y, 1, 0.34), _box(x, y, 0.34, 1)),
    "heart": _heart,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.78) - 0.22,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1, 0.82 - np.hypot(x - 0.55, y)),
    "arrow": _arrow,
}


@dataclass(frozen=True)
class Shape:
    """One of the things in a scene."""

    kind: str
    colour: str
    radius: float  # pixels
    x: float  # the centre, pixels from the left edge
    y: float  # pixels from the top edge

    @property
    def size(self) -> str:
        """'small' or 'large'."""
        return size_of(self.radius)


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    shapes: tuple[Shape, ...]
    ground: str
    relation: str | None = None  # where the first of two shapes stands, seen from the second


def size_of(radius: float) -> str:
    """The word for a radius in pixels: the sizes are far apart, the border lies half-way."""
    return "small" if radius < (SIZES["small"][1] + SIZES["large"][0]) / 2 else "large"


def cell_of(x: float, y: float) -> tuple[int, int]:
    """Column and row, 0 to 2, of a point (pixels) on the 3 x 3 grid of places."""

    def third(value: float) -> int:
        return 0 if value < 24 else 2 if value > 40 else 1

    return third(x), third(y)


def cover(kind: str, radius: float, x: float, y: float) -> np.ndarray:
    """How much of each pixel a shape covers: [64 64] float32 in [0, 1]. Radius and centre in pixels."""
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    across, down = np.meshgrid((axis - x) / radius, (axis - y) / radius)
    return np.clip(0.5 - radius * KINDS[kind](across, down), 0, 1).astype(np.float32)


def draw(scene: Scene) -> np.ndarray:
    """The picture of a scene: [64 64 3] uint8."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = GROUNDS[scene.ground]
    for shape in scene.shapes:
        inside = cover(shape.kind, shape.radius, shape.x, shape.y)[..., None]
        image = image + inside * (np.array(COLOURS[shape.colour], np.float32) - image)
    return np.rint(image).astype(np.uint8)


def sample_scene(rng: np.random.Generator, layout: str, pairs: list[tuple[str, str]]) -> Scene:
    """A random scene. layout: 'one', 'two' (unlike, with a relation), 'same' (two or three alike) or 'three'.

    pairs  the (colour, kind) pairs that may appear
    Raises InputError for another layout.
    """
    ground = str(rng.choice(list(GROUNDS)))
    if layout == "one":
        return Scene((_place_one(rng, _pair(rng, pairs)),), ground)
    if layout == "two":
        return _two(rng, _unlike(rng, pairs, 2), ground)
    if layout == "same":
        number = int(rng.integers(2, 4))
        return Scene(_scatter(rng, [_pair(rng, pairs)] * number, alike=True), ground)
    if layout == "three":
        a, b, c = _unlike(rng, pairs, 3)
        return Scene(_scatter(rng, [a, a, b] if rng.random() < 0.3 else [a, b, c], alike=False), ground)
    raise InputError(f"layout must be 'one', 'two', 'same' or 'three', not {layout!r}")


def pairs_seen() -> list[tuple[str, str]]:
    """The (colour, kind) pairs that training scenes are made of, in a fixed order."""
    return [(colour, kind) for colour in COLOURS for kind in KINDS if (colour, kind) not in HELD_OUT]


MIX = {"one": 0.32, "two": 0.50, "same": 0.09, "three": 0.09}  # how often training meets each layout


def training_scenes(seed: int) -> Iterator[Scene]:
    """Training scenes without end, the same for the same seed; none shows a held-out pair."""
    rng, pairs = np.random.default_rng(seed), pairs_seen()
    layouts, odds = list(MIX), list(MIX.values())
    while True:
        yield sample_scene(rng, str(rng.choice(layouts, p=odds)), pairs)


def _pair(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> tuple[str, str]:
    return pairs[rng.integers(len(pairs))]


def _unlike(rng: np.random.Generator, pairs: list[tuple[str, str]], number: int) -> list[tuple[str, str]]:
    return [pairs[i] for i in rng.choice(len(pairs), number, replace=False)]


def _radius(rng: np.random.Generator, size: str) -> float:
    return float(rng.uniform(*SIZES[size]))


def _size(rng: np.random.Generator) -> str:
    return "small" if rng.random() < 0.5 else "large"


def _place_one(rng: np.random.Generator, pair: tuple[str, str]) -> Shape:
    radius = _radius(rng, _size(rng))
    slack = 1.0 if radius > 12 else 2.5
    x, y = (np.array([16, 32, 48])[rng.integers(3, size=2)] + rng.uniform(-slack, slack, 2)).tolist()
    return Shape(pair[1], pair[0], radius, x, y)


def _two(rng: np.random.Generator, pairs: list[tuple[str, str]], ground: str) -> Scene:
    """Two shapes apart along one axis by their radii and 4 pixels or more, nearly level on the other."""
    a, b = _radius(rng, _size(rng)), _radius(rng, _size(rng))
    reach, gap = max(a, b) + 1.5, a + b + 4
    first = rng.uniform(a + 1.5, SIDE - 1.5 - b - gap)  # the coordinate of a, if a comes first
    second = rng.uniform(first + gap, SIDE - 1.5 - b)
    level = rng.uniform(reach, SIDE - reach)
    levels = np.clip(level + rng.uniform(-4, 4, 2), (a + 1.5, b + 1.5), (SIDE - 1.5 - a, SIDE - 1.5 - b))
    relation = RELATIONS[rng.integers(4)]
    if relation in ("right", "below"):
        first, second = SIDE - first, SIDE - second
    spots = [(first, levels[0]), (second, levels[1])]
    if relation in ("above", "below"):
        spots = [(across, along) for along, across in spots]
    shapes = tuple(
        Shape(kind, colour, radius, float(x), float(y))
        for (colour, kind), radius, (x, y) in zip(pairs, (a, b), spots, strict=True)
    )
    return Scene(shapes, ground, relation)


def _scatter(rng: np.random.Generator, pairs: list[tuple[str, str]], alike: bool) -> tuple[Shape, ...]:
    """Each shape in its own quarter of the picture; alike shapes share one size."""
    size, shapes = _size(rng), []
    for (colour, kind), quarter in zip(pairs, rng.permutation(4), strict=False):
        radius = _radius(rng, size if alike else _size(rng))
        slack = SIDE / 4 - 1.5 - radius
        x, y = SIDE / 4 * (1 + 2 * np.array(divmod(quarter, 2))) + rng.uniform(-slack, slack, 2)
        shapes.append(Shape(kind, colour, radius, float(x), float(y)))
    return tuple(shapes)
