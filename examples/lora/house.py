"""A shape that the bundled model has never seen, the house: its picture, its word, its scenes and prompts.

The world's tables know it only inside `known()`:

    with known():
        draw(scene), judge(picture, prompt)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from unittest.mock import patch

import numpy as np

from ldm.evaluation.shapes.captions import KIND_WORDS, Prompt, describe
from ldm.evaluation.shapes.world import COLOURS, KINDS, MIX, Scene, pairs_seen, sample_scene

WORD = "house"
UNSEEN = "orange"  # no training scene has a house of this colour
PAIRS = pairs_seen()  # of colour and kind, without houses
NUMBER, SHARE = 1000, 0.6  # of the training scenes, and of those with a house among them


def house(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance of the unit house: a roof from (0, -1) to its eaves (±1, -0.1), walls below."""
    roof = np.maximum((0.9 * np.abs(x) - (y + 1)) / np.hypot(0.9, 1), y + 0.1)
    walls = np.maximum(np.abs(x) - 0.66, np.abs(y - 0.4) - 0.52)
    return np.minimum(roof, walls)


@contextmanager
def known() -> Iterator[None]:
    """The world, its grammar and its judge know houses while this lasts."""
    with patch.dict(KINDS, {WORD: house}), patch.dict(KIND_WORDS, {WORD: (WORD,)}):
        yield


def scene_with_a_house(rng: np.random.Generator, colours: list[str]) -> Scene:
    """One shape or two, one of which is a house in one of some colours; the other is of a pair of old."""
    scene = sample_scene(rng, ("one", "two")[rng.integers(2)], PAIRS)
    which, colour = int(rng.integers(len(scene.shapes))), colours[rng.integers(len(colours))]
    shapes = list(scene.shapes)
    shapes[which] = replace(shapes[which], kind=WORD, colour=colour)
    return replace(scene, shapes=tuple(shapes))


def training_pairs(number: int = NUMBER, share: float = SHARE, seed: int = 0) -> list[tuple[Scene, str]]:
    """Scenes to train on and what is said of them: houses, then old scenes so that nothing is forgotten.

    share  of scenes with a house
    """
    rng, houses = np.random.default_rng((seed, 1)), round(share * number)
    shown = [colour for colour in COLOURS if colour != UNSEEN]
    layouts = rng.choice(list(MIX), number - houses, p=list(MIX.values()))
    scenes = [scene_with_a_house(rng, shown) for _ in range(houses)]
    scenes += [sample_scene(rng, str(layout), PAIRS) for layout in layouts]
    with known():
        return [(scene, describe(scene, rng).text) for scene in scenes]


def house_prompts(number: int, colours: list[str], seed: int = 2026) -> list[Prompt]:
    """Prompts that ask for a house in one of some colours; none is the caption of a training scene."""
    rng, trained = np.random.default_rng((seed, len(colours))), {text for _, text in training_pairs()}
    with known():
        drawn = (describe(scene_with_a_house(rng, colours), rng) for _ in iter(int, 1))
        return list(islice((prompt for prompt in drawn if prompt.text not in trained), number))
