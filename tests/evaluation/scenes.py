"""Scenes that all tests of the world of shapes look at."""

from itertools import islice

from ldm.evaluation.shapes.world import Scene, training_scenes


def some_scenes(number: int, seed: int = 7) -> list[Scene]:
    return list(islice(training_scenes(seed), number))
