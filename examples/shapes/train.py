"""The model in the box from nothing, or further passes of its painter: trained, written, judged, and told of.

    python examples/shapes/train.py                                    all of it, by the recipe
    python examples/shapes/train.py --from bundled --steps 10000       the shipped painter goes on learning
    torchrun --nproc-per-node 2 examples/shapes/train.py               on two cores, a half of each batch each

The same command goes on with what was interrupted. All lies in --run:

    run.json                       the recipe
    reader/ decoder/ pass-1/ …     checkpoints, metrics.jsonl; of passes sheets/step-….png
    model/                         a folder that ldm.load takes
    scores.json, card.md           what the judge says, and all of it in short
"""

import argparse
import json
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from card import write_card
from decoding import Decoding, train_decoder
from door import parser, told
from painting import train_painter
from patches import Projection, principal, projection_of
from reading import train_reader
from recipe import Recipe, Stage, check, from_nothing, shared
from safetensors.torch import load_file
from scenes import to_tensor

import ldm
from ldm.checkpoint.files import replacing, write
from ldm.checks import whole
from ldm.errors import InputError
from ldm.evaluation.shapes import SETS
from ldm.evaluation.shapes.scoring import MOST_PROMPTS, score
from ldm.evaluation.shapes.world import training_scenes
from ldm.families import SHAPES
from ldm.family import Family
from ldm.pipeline import Pipeline
from ldm.ranks import Ranks, joined
from ldm.training.changes import check_same
from ldm.training.checkpoints import latest
from ldm.training.places import absolute, listed, ready

RUNS = Path(__file__).parent / "runs"
MEASURED = 2048  # scenes whose patches give the projection
JUDGED = 1  # seed of the first picture that is judged
RATE = 1e-3  # peak of a further pass


def train(
    recipe: Recipe, run: Path, ranks: Ranks, family: Family = SHAPES, every: int = 1000, progress: bool = True
) -> Pipeline:
    """Every stage in turn; what is done is not done again. Returns the model, with the averaged weights.

    every  steps of the painter between sheets
    Raises InputError for a run that was begun with another recipe, and as `ldm.load` for its source.
    """
    check(recipe, ranks.size)
    source = opened(recipe.source) if recipe.source else None  # before the run is begun with it
    if ranks.first:
        remember(recipe, run)
    ranks.wait()
    pipe = (source or fresh(recipe, run, ranks, family)).to(ranks.device)
    if not recipe.source:
        train_reader(pipe, recipe, run, ranks, progress=progress)
        train_decoder(pipe, recipe, run, ranks, progress=progress)
    for i in range(1, len(recipe.passes) + 1):
        train_painter(pipe, recipe, i, run, ranks, every, progress)
    return pipe


def remember(recipe: Recipe, run: Path) -> None:
    """Write the recipe into the folder of its run. Raises InputError if another one is there."""
    ready(run)
    file, known = run / "run.json", json.loads(json.dumps(asdict(recipe)))
    if file.exists():
        check_same(noted(run), known)
    with replacing(file) as out:
        out.write(json.dumps(known, indent=1).encode())


def recalled(run: Path) -> Recipe:
    """The recipe of a run. Raises InputError."""
    known = noted(run)
    try:
        stages = {name: Stage(**known[name]) for name in ("reader", "decoder")}
        return Recipe(**{**known, **stages, "passes": tuple(Stage(**each) for each in known["passes"])})
    except (KeyError, TypeError) as error:
        raise InputError(f"{run}/run.json is no recipe: {error}; give a run of train.py") from error


def noted(run: Path) -> dict[str, Any]:
    """What run.json says. Raises InputError."""
    try:
        known = json.loads((run / "run.json").read_text("utf-8"))
        if not isinstance(known, dict):
            raise ValueError(f"it is a {type(known).__name__}")
        return known
    except (OSError, ValueError) as error:
        raise InputError(f"{run} has no readable run.json: {error}; give a run of train.py") from error


def beginning(recipe: Recipe, run: Path, ranks: Ranks = Ranks(), family: Family = SHAPES) -> Pipeline:
    """The model before its first step. Raises as `ldm.load`."""
    return opened(recipe.source) if recipe.source else fresh(recipe, run, ranks, family)


def opened(source: str) -> Pipeline:
    """The model to go on from. Raises as `ldm.load`, and InputError for one that is none of this world."""
    pipe = ldm.load(None if source == "bundled" else source, copy=True)
    projection_of(pipe.vae)
    return pipe


def fresh(recipe: Recipe, run: Path, ranks: Ranks, family: Family) -> Pipeline:
    """The model from nothing."""
    file = run / "projection.safetensors"
    if not file.exists() and ranks.first:  # read back by all, so that no rounding differs
        scenes = list(islice(training_scenes(recipe.seed), MEASURED))
        write(file, principal(to_tensor(scenes), family.vae.latent_channels)._asdict(), {})
    ranks.wait()
    return from_nothing(recipe, Projection(**load_file(file)), family)


def trained(run: Path, family: Family = SHAPES) -> Pipeline:
    """What a run has made so far, with the averaged weights of the newest pass. Raises as `latest`."""
    recipe = recalled(run)
    stages = () if recipe.source else ("reader", "decoder")
    weights = {name: latest(run / name).tensors["weights"] for name in stages}
    pipe = beginning(recipe, run, family=family)
    if weights:
        pipe.text_encoders[0].load_state_dict(under("text.", weights["reader"]))
        Decoding(pipe.vae).load_state_dict(weights["decoder"], strict=False)
        pipe.vae.requires_grad_(False)
    passes = [run / f"pass-{i}" for i in range(1, len(recipe.passes) + 1)]
    if begun := [folder for folder in passes if listed(folder)]:
        pipe.unet.load_state_dict(under("shadow.unet.", latest(begun[-1]).tensors["ema"]))
    return pipe


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin so, without that."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def judged(pipe: Pipeline, number: int) -> dict[str, Any]:
    """What the judge says of so many prompts of each set, as `ldm eval shapes --json` has it."""
    percent = {name: score(pipe, name, number, JUDGED) for name in SETS}
    return {"prompts": number, "seed": JUDGED, "percent": percent}


@told()
def main() -> None:
    """Train, write, judge and tell."""
    given = parsed()
    whole("--number", given.number, MOST_PROMPTS, least=0)
    run = absolute("--run", given.run)
    with joined(given.device) as ranks:
        recipe = recipe_of(given)
        pipe = train(recipe, run, ranks)
        if ranks.first:
            pipe.to("cpu")
            ldm.save(pipe, run / "model", layout="diffusers", dtype=torch.float16)
            scores = judged(ldm.load(run / "model"), given.number) if given.number else {}
            if scores:
                with replacing(run / "scores.json") as file:
                    file.write(json.dumps(scores, indent=1).encode())
            print(write_card(pipe, recipe, run, scores, ranks.size))


def recipe_of(given: argparse.Namespace) -> Recipe:
    """The recipe, or of a model that is there one further pass with Muon. Raises InputError."""
    recipe = Recipe(seed=given.seed, source=given.source)
    if given.source:
        rate = RATE if given.rate is None else given.rate
        recipe = replace(recipe, passes=(Stage(10_000, 24, rate, muon=True),))
    elif given.rate is not None:
        raise InputError(f"--rate {given.rate} is of the pass with --from; give that too, or leave it out")
    return recipe if given.steps is None else replace(recipe, passes=shared(recipe.passes, given.steps))


def parsed() -> argparse.Namespace:
    """The words of the command."""
    words = parser(__doc__)
    words.add_argument("--run", type=Path, default=RUNS / "model", help="folder of this run")
    words.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    words.add_argument("--device", default="", help="a GPU where there is one")
    words.add_argument("--from", dest="source", default="", metavar="MODEL", help="bundled, or a folder")
    words.add_argument("--steps", type=int, help="of the painter in all passes together")
    words.add_argument("--rate", type=float, help=f"peak of the pass with --from (default: {RATE})")
    words.add_argument("--number", type=int, default=500, help="prompts of each set for the judge; 0: none")
    return words.parse_args()


if __name__ == "__main__":
    main()
