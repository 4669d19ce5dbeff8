"""How often the model paints what it is asked for: 500 prompts a set, fixed seeds, judged by `judge.py`.

    python examples/shapes/evaluate.py                  the model in the package
    python examples/shapes/evaluate.py --model PATH     a folder that ldm.load reads
    python examples/shapes/evaluate.py --run PATH       the newest weights of a training run

one, two      one or two shapes, of colour and kind pairs that training showed
held-out      one shape of a pair that training never showed; in every other prompt a second, of a pair it did
same, three   two or three alike; three of which two at most are alike
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from captions import Prompt, describe
from judge import Verdict, judge
from world import HELD_OUT, Scene, pairs_seen, sample_scene

import ldm
from ldm.pipeline import Pipeline

SETS = ("one", "two", "held-out", "same", "three")
ASPECTS = (*(field.name for field in fields(Verdict)), "right")


def make_prompts(name: str, number: int, seed: int = 2026) -> list[Prompt]:
    """The prompts of a set, the same for the same seed; a longer list begins with the shorter one."""
    rng = np.random.default_rng((seed, SETS.index(name)))
    return [describe(_scene(name, i, rng), rng) for i in range(number)]


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


def paint(
    pipe: Pipeline, prompts: Sequence[Prompt], seed: int, batch: int = 50, **settings: object
) -> np.ndarray:
    """One picture for each prompt: float32 [b 64 64 3] in [0, 1]. Picture i has seed + i."""
    return np.concatenate(
        [
            pipe(
                [prompt.text for prompt in prompts[i : i + batch]],
                seed=seed + i,
                output_type="np",
                progress=False,
                **settings,
            ).images
            for i in range(0, len(prompts), batch)
        ]
    )


def score(pipe: Pipeline, name: str, number: int, seed: int, **settings: object) -> dict[str, float]:
    """The share of right answers by aspect, in percent, over a set of prompts."""
    prompts = make_prompts(name, number)
    images = paint(pipe, prompts, seed, **settings)
    verdicts = [judge(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    return {
        aspect: round(100 * float(np.mean([getattr(verdict, aspect) for verdict in verdicts])), 2)
        for aspect in ASPECTS
    }


def seconds_per_image(pipe: Pipeline, repeats: int = 5, **settings: object) -> float:
    """Median wall time of one picture alone."""
    times = []
    for seed in range(repeats):
        begun = time.perf_counter()
        pipe("a small red star on a navy background", seed=seed, progress=False, **settings)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, help="a folder that ldm.load reads; the bundled model if not given"
    )
    parser.add_argument("--run", type=Path, help="a training run, instead of --model")
    parser.add_argument("--number", type=int, default=500, help="prompts per set")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--json", type=Path, help="also write the table here")
    given = parser.parse_args()
    settings = {"num_inference_steps": given.steps, "guidance_scale": given.guidance}
    pipe = _from_run(given.run) if given.run else ldm.load(given.model)
    table = {}
    print(f"{'':10}" + "".join(f"{aspect:>9}" for aspect in ASPECTS))
    for name in given.sets:
        table[name] = score(pipe, name, given.number, given.seed, **settings)
        print(f"{name:10}" + "".join(f"{value:9.1f}" for value in table[name].values()), flush=True)
    print(f"{seconds_per_image(pipe, **settings):.2f} s for one picture alone")
    if given.json:
        given.json.write_text(
            json.dumps({"prompts": given.number, "seed": given.seed, "percent": table}, indent=1) + "\n"
        )


def _from_run(run: Path) -> Pipeline:
    from export import as_pipeline
    from stages import Recipe
    from train import trained

    return as_pipeline(trained(Recipe(), run))


if __name__ == "__main__":
    main()
