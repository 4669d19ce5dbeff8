"""How often a model paints what it is asked for, as `ldm eval shapes` says it, and how long a picture takes.

    python examples/shapes/evaluate.py                  the model in the package
    python examples/shapes/evaluate.py --model PATH     a folder that ldm.load reads
    python examples/shapes/evaluate.py --run PATH       the newest weights of a training run

The sets of prompts are those of `ldm.evaluation.shapes.scoring`.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import ldm
from ldm.commands.evaluate import add_shapes_options, judged
from ldm.pipeline import Pipeline


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shapes_options(parser)
    parser.add_argument("--run", type=Path, help="a training run, instead of --model")
    given = parser.parse_args()
    pipe = _from_run(given.run) if given.run else ldm.load(given.model, device=given.device)
    judged(pipe, given, given.run or given.model)
    print(f"{seconds_per_image(pipe, given.steps, given.guidance):.2f} s for one picture alone")


def _from_run(run: Path) -> Pipeline:
    from train import trained

    return trained(run)


if __name__ == "__main__":
    main()
