"""The grammar: what may be said about a scene, and in how many ways.

    prompt   = [opening] things [ground]
    things   = thing [place] | thing relation thing  |  thing "with" thing relation  |  number things | list
    thing    = a [size] colour kind

A prompt keeps what it asked for, so that the judge needs no parser: what was left unsaid is free.
"""

from dataclasses import dataclass

import numpy as np

from ldm.evaluation.shapes.world import Scene, Shape, cell_of

KIND_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
    "crescent": ("crescent", "moon"),
    "arrow": ("arrow",),
}
PLURALS = {"box": "boxes", "rhombus": "rhombuses", "cross": "crosses", "plus": "pluses"}
COLOUR_WORDS = {"purple": ("purple", "violet"), "cyan": ("cyan", "turquoise"), "grey": ("grey", "gray")}
SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
OPENINGS = ("a picture of ", "an image of ", "a drawing of ", "there is ")
GROUND_FORMS = (
    " on a {} background",
    " on a {} background",
    " on a {} ground",
    " on {}",
    " against a {} backdrop",
    " in front of a {} background",
    ", {} background",
)
RELATION_FORMS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
}
WITH_FORMS = {  # a thing with another thing ...
    "left": ("to its left", "on its left"),
    "right": ("to its right", "on its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
ROWS = (("top", "upper"), ("middle",), ("bottom", "lower"))
COLUMNS = ("left", "middle", "right")


@dataclass(frozen=True)
class Want:
    """One shape as it was asked for; None is free."""

    kind: str
    colour: str
    size: str | None = None
    cell: tuple[int, int] | None = None  # column, row on the 3 x 3 grid


@dataclass(frozen=True)
class Prompt:
    """What is said, and what it asks for."""

    text: str
    wants: tuple[Want, ...]  # in the order in which the text has them
    relation: str | None = None  # where the first want stands, seen from the second
    ground: str | None = None


def describe(scene: Scene, rng: np.random.Generator) -> Prompt:
    """One of the many true things to say about a scene; size, place, relation and ground may stay unsaid."""
    alike = len({(shape.kind, shape.colour) for shape in scene.shapes}) == 1
    if len(scene.shapes) == 1:
        text, wants, relation = _one(scene.shapes[0], rng)
    elif alike:
        text, wants, relation = _alike(scene.shapes, rng)
    elif scene.relation and rng.random() < 0.85:
        text, wants, relation = _related(scene, rng)
    else:
        text, wants, relation = _listed(scene.shapes, rng)
    if rng.random() < 0.15:
        text = _pick(rng, OPENINGS) + text
    if rng.random() < 0.15:
        return Prompt(text, wants, relation)
    ground = _pick(rng, GROUND_FORMS).format(_colour(scene.ground, rng))
    return Prompt(text + ground, wants, relation, scene.ground)


def corpus() -> list[str]:
    """Every word of the grammar once or more: what the tokenizer learns its merges from."""
    words = [
        word
        for table in (KIND_WORDS, COLOUR_WORDS, SIZE_WORDS, RELATION_FORMS, WITH_FORMS)
        for forms in table.values()
        for word in forms
    ]
    words += [_plural(word) for forms in KIND_WORDS.values() for word in forms]
    words += [*OPENINGS, *(form.replace("{}", " ") for form in GROUND_FORMS)]
    words += [word for row in ROWS for word in row]
    words += [
        "red orange yellow green cyan blue purple pink black white grey navy beige brown",
        "a an and with one two three",
        "in the middle left right corner centre center at of side",
    ]
    return sorted({word for line in words for word in line.replace(",", " , ").split()})


def _pick(rng: np.random.Generator, forms: tuple[str, ...]) -> str:
    return forms[rng.integers(len(forms))]


def _colour(colour: str, rng: np.random.Generator) -> str:
    forms = COLOUR_WORDS.get(colour)
    return colour if forms is None or rng.random() < 0.7 else forms[1]


def _kind(kind: str, rng: np.random.Generator) -> str:
    forms = KIND_WORDS[kind]
    return forms[0] if len(forms) == 1 or rng.random() < 0.75 else forms[1]


def _plural(word: str) -> str:
    return PLURALS.get(word, word + "s")


def _words(shape: Shape, sized: bool, rng: np.random.Generator) -> str:
    size = _pick(rng, SIZE_WORDS[shape.size]) + " " if sized else ""
    return size + _colour(shape.colour, rng) + " "


def _a(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _thing(shape: Shape, rng: np.random.Generator) -> tuple[str, Want]:
    sized = bool(rng.random() < 0.6)
    text = _a(_words(shape, sized, rng) + _kind(shape.kind, rng))
    return text, Want(shape.kind, shape.colour, shape.size if sized else None)


def _one(shape: Shape, rng: np.random.Generator) -> tuple[str, tuple[Want, ...], None]:
    text, want = _thing(shape, rng)
    if rng.random() < 0.25:
        return text, (want,), None
    cell = cell_of(shape.x, shape.y)
    return f"{text} {_place(cell, rng)}", (Want(want.kind, want.colour, want.size, cell),), None


def _place(cell: tuple[int, int], rng: np.random.Generator) -> str:
    column, row = cell
    if cell == (1, 1):
        return _pick(rng, ("in the middle", "in the centre", "in the center", "at the centre"))
    if column == 1:
        return f"at the {ROWS[row][0]}" if rng.random() < 0.5 else f"in the {ROWS[row][0]} middle"
    if row == 1:
        return _pick(rng, ("on the {} side", "in the middle {}", "at the middle {}")).format(COLUMNS[column])
    corner = f"{_pick(rng, ROWS[row])} {COLUMNS[column]}"
    return _pick(rng, ("in the {}", "at the {}", "in the {} corner")).format(corner)


def _alike(shapes: tuple[Shape, ...], rng: np.random.Generator) -> tuple[str, tuple[Want, ...], None]:
    shape, sized = shapes[0], bool(rng.random() < 0.6)
    number = {2: "two", 3: "three"}[len(shapes)]
    text = f"{number} {_words(shape, sized, rng)}{_plural(_kind(shape.kind, rng))}"
    return text, (Want(shape.kind, shape.colour, shape.size if sized else None),) * len(shapes), None


def _related(scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[Want, ...], str]:
    """A left of B is also B right of A, and B with A to its left."""
    (a, a_want), (b, b_want) = (_thing(shape, rng) for shape in scene.shapes)
    relation, form = str(scene.relation), rng.random()
    opposite = OPPOSITE[relation]
    if form < 0.4:
        return f"{a} {_pick(rng, RELATION_FORMS[relation])} {b}", (a_want, b_want), relation
    if form < 0.8:
        return f"{b} {_pick(rng, RELATION_FORMS[opposite])} {a}", (b_want, a_want), opposite
    if form < 0.9:
        return f"{b} with {a} {_pick(rng, WITH_FORMS[relation])}", (b_want, a_want), opposite
    return f"{a} with {b} {_pick(rng, WITH_FORMS[opposite])}", (a_want, b_want), relation


def _listed(shapes: tuple[Shape, ...], rng: np.random.Generator) -> tuple[str, tuple[Want, ...], None]:
    """Two or three shapes in any order; two alike of three are counted: 'two red circles and a blue star'."""
    first, second, *rest = shapes
    if rest and (first.kind, first.colour) == (second.kind, second.colour):
        text = f"two {_words(first, False, rng)}{_plural(_kind(first.kind, rng))}"
        other, want = _thing(rest[0], rng)
        return f"{text} and {other}", (*(Want(first.kind, first.colour),) * 2, want), None
    things = [_thing(shapes[i], rng) for i in rng.permutation(len(shapes))]
    *texts, last = [text for text, _ in things]
    return f"{', '.join(texts)} and {last}", tuple(want for _, want in things), None
