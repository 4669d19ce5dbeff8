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
from painting import train_painter
from patches import Projection, principal
from reading import train_reader
from recipe import Recipe, Stage, check, from_nothing, shared
from safetensors.torch import load_file, save_file
from scenes import to_tensor

import ldm
from ldm.checkpoint.files import replacing
from ldm.errors import InputError
from ldm.evaluation.shapes import SETS
from ldm.evaluation.shapes.scoring import score
from ldm.evaluation.shapes.world import training_scenes
from ldm.families import SHAPES
from ldm.family import Family
from ldm.pipeline import Pipeline
from ldm.ranks import Ranks, joined
from ldm.training.changes import check_same
from ldm.training.checkpoints import latest
from ldm.training.places import listed

RUNS = Path(__file__).parent / "runs"
MEASURED = 2048  # scenes whose patches give the projection
JUDGED = 1  # seed of the first picture that is judged


def train(
    recipe: Recipe, run: Path, ranks: Ranks, family: Family = SHAPES, every: int = 1000, progress: bool = True
) -> Pipeline:
    """Every stage in turn; what is done is not done again. Returns the model, with the averaged weights.

    every  steps of the painter between sheets
    Raises InputError for a run that was begun with another recipe.
    """
    check(recipe, ranks.size)
    if ranks.first:
        remember(recipe, run)
    ranks.wait()
    pipe = beginning(recipe, run, ranks, family).to(ranks.device)
    if not recipe.source:
        train_reader(pipe, recipe, run, ranks, progress=progress)
        train_decoder(pipe, recipe, run, ranks, progress=progress)
    for i in range(1, len(recipe.passes) + 1):
        train_painter(pipe, recipe, i, run, ranks, every, progress)
    return pipe


def remember(recipe: Recipe, run: Path) -> None:
    """Write the recipe into the folder of its run. Raises InputError if another one is there."""
    file, told = run / "run.json", json.loads(json.dumps(asdict(recipe)))
    if file.exists():
        check_same(json.loads(file.read_text("utf-8")), told)
    run.mkdir(parents=True, exist_ok=True)
    with replacing(file) as out:
        out.write(json.dumps(told, indent=1).encode())


def recalled(run: Path) -> Recipe:
    """The recipe of a run. Raises InputError."""
    try:
        told: dict[str, Any] = json.loads((run / "run.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run} has no readable run.json: {error}; give a run of train.py") from error
    stages = {name: Stage(**told[name]) for name in ("reader", "decoder")}
    return Recipe(**{**told, **stages, "passes": tuple(Stage(**each) for each in told["passes"])})


def beginning(recipe: Recipe, run: Path, ranks: Ranks = Ranks(), family: Family = SHAPES) -> Pipeline:
    """The model before its first step. Raises as `ldm.load`."""
    if recipe.source:
        return ldm.load(None if recipe.source == "bundled" else recipe.source, copy=True)
    file = run / "projection.safetensors"
    if not file.exists() and ranks.first:  # read back by all, so that no rounding differs
        scenes = list(islice(training_scenes(recipe.seed), MEASURED))
        save_file(principal(to_tensor(scenes), family.vae.latent_channels)._asdict(), file)
    ranks.wait()
    return from_nothing(recipe, Projection(**load_file(file)), family)


def trained(run: Path, family: Family = SHAPES) -> Pipeline:
    """What a run has made so far, with the averaged weights of the newest pass. Raises as `latest`."""
    recipe = recalled(run)
    pipe = beginning(recipe, run, family=family)
    if not recipe.source:
        read = latest(run / "reader").tensors["weights"]
        pipe.text_encoders[0].load_state_dict(under("text.", read))
        Decoding(pipe.vae).load_state_dict(latest(run / "decoder").tensors["weights"], strict=False)
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


def main() -> None:
    """Train, write, judge and tell."""
    given = parsed()
    with joined(given.device) as ranks:
        recipe = recipe_of(given)
        pipe = train(recipe, given.run, ranks)
        if ranks.first:
            pipe.to("cpu")
            ldm.save(pipe, given.run / "model", layout="diffusers", dtype=torch.float16)
            scores = judged(ldm.load(given.run / "model"), given.number) if given.number else {}
            if scores:
                with replacing(given.run / "scores.json") as file:
                    file.write(json.dumps(scores, indent=1).encode())
            print(write_card(pipe, recipe, given.run, scores, ranks.size))


def recipe_of(given: argparse.Namespace) -> Recipe:
    """The recipe, or of a model that is there one further pass with Muon."""
    recipe = Recipe(seed=given.seed, source=given.source)
    if given.source:
        recipe = replace(recipe, passes=(Stage(10_000, 24, given.rate, muon=True),))
    return replace(recipe, passes=shared(recipe.passes, given.steps)) if given.steps else recipe


def parsed() -> argparse.Namespace:
    """The words of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=RUNS / "model", help="folder of this run")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--device", default="", help="a GPU where there is one")
    parser.add_argument("--from", dest="source", default="", metavar="MODEL", help="bundled, or a folder")
    parser.add_argument("--steps", type=int, help="of the painter in all passes together")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak of the pass with --from")
    parser.add_argument("--number", type=int, default=500, help="prompts of each set for the judge; 0: none")
    return parser.parse_args()


if __name__ == "__main__":
    main()
