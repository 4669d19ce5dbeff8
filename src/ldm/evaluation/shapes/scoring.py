"""How often a model paints what it is asked for: sets of prompts, fixed by their names, judged by `judge`.

one, two      one or two shapes, of colour and kind pairs that training showed
held-out      one shape of a pair that training never showed; in every other prompt a second, of a pair it did
same, three   two or three alike; three of which two at most are alike
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
from tqdm.auto import tqdm

from ldm.checks import one_of, whole
from ldm.errors import InputError
from ldm.evaluation.shapes import SETS
from ldm.evaluation.shapes.captions import Prompt, describe
from ldm.evaluation.shapes.judge import Verdict, judge
from ldm.evaluation.shapes.world import HELD_OUT, SIDE, Scene, pairs_seen, sample_scene
from ldm.pipeline import Pipeline
from ldm.rows import hears_classes

ASPECTS = (*(field.name for field in fields(Verdict)), "right")
MOST_PROMPTS = 1_000_000
BATCH = 50  # pictures that are painted at once


def make_prompts(name: str, number: int, seed: int = 2026) -> list[Prompt]:
    """The prompts of a set, the same for the same seed; a longer list begins with the shorter one.

    name  one of `SETS`
    Raises InputError.
    """
    rng = np.random.default_rng((seed, SETS.index(one_of("set", name, SETS))))
    return [describe(_scene(name, i, rng), rng) for i in range(whole("number", number, MOST_PROMPTS))]


def _scene(name: str, i: int, rng: np.random.Generator) -> Scene:
    if name != "held-out":
        return sample_scene(rng, name, pairs_seen())
    scene = sample_scene(rng, ("one", "two")[i % 2], pairs_seen())
    unseen = sorted(HELD_OUT)
    colour, kind = unseen[rng.integers(len(unseen))]
    which = int(rng.integers(len(scene.shapes)))
    shapes = tuple(
        replace(shape, colour=colour, kind=kind) if j == which else shape
        for j, shape in enumerate(scene.shapes)
    )
    return replace(scene, shapes=shapes)


def check_judged(pipe: Pipeline) -> None:
    """Raises InputError for a model whose pictures the judge cannot read."""
    family = pipe.family
    if not family.texts or hears_classes(family) or family.beside:
        raise InputError(f"the judge asks in words alone, and {family.name} does not paint from them")
    if family.size != SIDE:
        raise InputError(
            f"the judge reads pictures of {SIDE}×{SIDE} pixels, and {family.name} paints "
            f"{family.size}×{family.size}; give a model of the world of shapes"
        )


def paint(
    pipe: Pipeline, prompts: Sequence[Prompt], seed: int, *, steps: int | None = None,
    guidance: float | None = None, progress: bool = True,
) -> Iterator[np.ndarray]:  # fmt: skip
    """One picture for each prompt, float32 [64 64 3] in [0, 1]. Picture i has seed + i.

    steps, guidance  None: the family's own
    Raises InputError as the pipeline does.
    """
    with tqdm(total=len(prompts), disable=not progress, leave=False) as bar:
        for i in range(0, len(prompts), BATCH):
            texts = [prompt.text for prompt in prompts[i : i + BATCH]]
            yield from pipe(
                texts, seed=seed + i, num_inference_steps=steps, guidance_scale=guidance,
                output_type="np", progress=False,
            ).images  # fmt: skip
            bar.update(len(texts))


def score(
    pipe: Pipeline, name: str, number: int, seed: int, *, steps: int | None = None,
    guidance: float | None = None, progress: bool = True,
) -> dict[str, float]:  # fmt: skip
    """The share of right answers by aspect (`ASPECTS`), in percent, over `number` prompts of a set.

    Raises InputError for a model that the judge cannot read, a set that is none, and as the pipeline does.
    """
    check_judged(pipe)
    prompts = make_prompts(name, number)
    pictures = paint(pipe, prompts, seed, steps=steps, guidance=guidance, progress=progress)
    verdicts = [judge(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    return {
        aspect: round(100 * float(np.mean([getattr(verdict, aspect) for verdict in verdicts])), 2)
        for aspect in ASPECTS
    }
