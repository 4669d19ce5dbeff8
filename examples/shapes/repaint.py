"""Repainting, judged: half of a drawn scene is painted anew with another shape, and the other half must stay.

python examples/shapes/repaint.py [--number 100]
"""

import json
from dataclasses import replace

import numpy as np
from door import MOST, parser, told
from PIL import Image

import ldm
from ldm.checks import whole
from ldm.evaluation.shapes.captions import Prompt, describe
from ldm.evaluation.shapes.judge import judge
from ldm.evaluation.shapes.world import SIDE, Shape, draw, pairs_seen, sample_scene
from ldm.pipeline import Pipeline


def cases(number: int, seed: int = 2026) -> list[tuple[np.ndarray, np.ndarray, Prompt]]:
    """Scenes of two shapes side by side, the half to repaint (True), and what is then to be there."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < number:
        scene = sample_scene(rng, "two", pairs_seen())
        kept, gone = scene.shapes
        colour, kind = pairs_seen()[rng.integers(len(pairs_seen()))]
        if scene.relation not in ("left", "right") or (kind, colour) in {
            (s.kind, s.colour) for s in scene.shapes
        }:
            continue
        mask = np.zeros((SIDE, SIDE), bool)
        border = edge(kept, gone)
        mask[:, border:] = gone.x > kept.x
        mask[:, :border] = gone.x < kept.x
        wanted = replace(scene, shapes=(kept, replace(gone, colour=colour, kind=kind)))
        found.append((draw(scene), mask, describe(wanted, rng)))
    return found


def edge(a: Shape, b: Shape) -> int:
    """The column between two shapes that stand side by side."""
    left, right = sorted((a, b), key=lambda shape: shape.x)
    return round((left.x + left.radius + right.x - right.radius) / 2)


def score(pipe: Pipeline, number: int, seed: int = 1) -> dict[str, float]:
    """The share of cases, in percent, whose other half kept every byte, and of those that were all right."""
    kept = right = 0
    for i, (picture, mask, prompt) in enumerate(cases(number)):
        drawn = pipe(
            prompt.text,
            image=Image.fromarray(picture),
            mask_image=mask,
            strength=1.0,
            seed=seed + i,
            progress=False,
        )
        after = np.asarray(drawn[0])
        kept += np.array_equal(after[~mask], picture[~mask])
        right += judge(after, prompt).right
    return {"kept": 100 * kept / number, "right": 100 * right / number}


@told()
def main() -> None:
    """Print the shares."""
    words = parser(__doc__)
    words.add_argument("--number", type=int, default=100, help="of cases")
    number = whole("--number", words.parse_args().number, MOST)
    print(json.dumps(score(ldm.load(), number)))


if __name__ == "__main__":
    main()
