"""How often a model paints what it is asked for, as `ldm eval shapes` says it, and how long a picture takes.

    python examples/shapes/evaluate.py                  the model in the package
    python examples/shapes/evaluate.py --model PATH     a folder that ldm.load reads
    python examples/shapes/evaluate.py --run PATH       the newest weights of a training run

The sets of prompts are those of `ldm.evaluation.shapes.scoring`.
"""

import time
from pathlib import Path

import numpy as np
from door import parser, told

import ldm
from ldm.commands.evaluate import add_shapes_options, check_place, judged
from ldm.devices import find_device
from ldm.errors import InputError
from ldm.pipeline import Pipeline
from ldm.training.places import absolute


def seconds_per_image(pipe: Pipeline, steps: int | None, guidance: float | None, repeats: int = 5) -> float:
    """Median wall time of one picture alone."""
    times = []
    for seed in range(repeats):
        begun = time.perf_counter()
        pipe(
            "a small red star on a navy background", seed=seed, num_inference_steps=steps,
            guidance_scale=guidance, progress=False,
        )  # fmt: skip
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


@told()
def main() -> None:
    """Print the table and the time."""
    words = parser(__doc__)
    add_shapes_options(words)
    words.add_argument("--run", type=Path, help="a training run, instead of --model")
    given = words.parse_args()
    if given.run and given.model:
        raise InputError(f"--run {given.run} and --model {given.model}: give one of them")
    check_place(given.json)
    device = find_device(given.device)
    pipe = _from_run(given.run).to(device) if given.run else ldm.load(given.model, device=device)
    judged(pipe, given, given.run or given.model)
    print(f"{seconds_per_image(pipe, given.steps, given.guidance):.2f} s for one picture alone")


def _from_run(run: Path) -> Pipeline:
    from train import trained

    return trained(absolute("--run", run))


if __name__ == "__main__":
    main()
