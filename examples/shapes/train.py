"""The recipe of the model in the box, from nothing: vocabulary, text encoder, latents, UNet, decoder.

    python examples/shapes/train.py                   all of it, by the clock
    python examples/shapes/train.py --steps 20000     the diffusion model for so many steps
    python examples/shapes/train.py --export PATH     write the newest weights as a folder for ldm.load

Run it again to go on where it stopped. All lies in --run: checkpoints, latents, vocabulary and log.jsonl.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import torch
from bpe import learn_merges, save_vocabulary
from captions import corpus
from loop import Plan, begin, train, weights
from patches import Projection, principal, project
from reading import Reader, reader_loss
from safetensors.torch import load_file, save_file
from stages import (
    LENGTH,
    Parts,
    Recipe,
    decoder_loss,
    learned,
    painter_loss,
    start_text,
    start_unet,
    start_vae,
    to_tensor,
)
from torch import Tensor
from world import Scene, training_scenes

from ldm.clip import Tokenizer

RUNS = Path(__file__).parent / "runs"


def run_recipe(recipe: Recipe, run: Path, device: str = "cpu") -> None:
    """Every stage in turn; what is done is not done again."""
    tokenizer, projection = make_tokenizer(run), make_projection(recipe, run)
    log = run / "log.jsonl"
    scenes = list(itertools.islice(training_scenes(recipe.seed), recipe.scenes))
    reader = Reader(start_text(recipe, len(tokenizer.vocab))).to(device)
    loss = reader_loss(reader, tokenizer, scenes, recipe, device)
    train(begin(reader, recipe.reader_plan), loss, recipe.reader_plan, run / "reader.safetensors", log)
    unet = start_unet(recipe).to(device, memory_format=torch.channels_last)
    latents = make_latents(scenes, projection, run)
    for i, plan in enumerate(recipe.painter_plans):
        again = replace(recipe, seed=recipe.seed + 3 * i)
        loss = painter_loss(unet, reader.text, tokenizer, scenes, latents, again, device)
        file = painter_file(run, i)
        train(begin(unet, plan), loss, plan, file, log)
        unet.load_state_dict(weights(file, "ema"))
    vae = start_vae(recipe, projection).to(device, memory_format=torch.channels_last)
    loss, plan = decoder_loss(vae, projection, recipe, device), recipe.decoder_plan
    train(begin(learned(vae), plan), loss, plan, run / "decoder.safetensors", log)


def painter_file(run: Path, i: int) -> Path:
    """The checkpoint of the painter's plan i."""
    return run / f"painter-{i + 1}.safetensors"


def make_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer of a run, learned from the grammar's words if it is not there yet."""
    folder = run / "tokenizer"
    if not (folder / "vocab.json").exists():
        save_vocabulary(learn_merges(corpus()), folder, LENGTH)
    return Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt", length=LENGTH)


def make_projection(recipe: Recipe, run: Path) -> Projection:
    """The principal components of the patches of the first training scenes, from the run if it has them."""
    file = run / "projection.safetensors"
    if not file.exists():
        scenes = list(itertools.islice(training_scenes(recipe.seed), 2048))
        save_file(principal(to_tensor(scenes), recipe.vae.latent_channels)._asdict(), file)
    return Projection(**load_file(file))


def make_latents(scenes: list[Scene], projection: Projection, run: Path) -> Tensor:
    """Latents of all scenes, [b c 16 16] float16, from the run if it has them."""
    file = run / "latents.safetensors"
    if not file.exists():
        some = (scenes[i : i + 500] for i in range(0, len(scenes), 500))
        parts = [project(to_tensor(part), projection).half() for part in some]
        save_file({"latents": torch.cat(parts).contiguous()}, file)
    return load_file(file)["latents"]


def trained(recipe: Recipe, run: Path) -> Parts:
    """What a run has made so far: the UNet's averaged weights, the others' last ones; on the CPU."""
    tokenizer = make_tokenizer(run)
    reader, unet = Reader(start_text(recipe, len(tokenizer.vocab))), start_unet(recipe)
    vae = start_vae(recipe, make_projection(recipe, run))
    reader.load_state_dict(weights(run / "reader.safetensors", "net"))
    newest = max(i for i in range(len(recipe.painter_plans)) if painter_file(run, i).exists())
    unet.load_state_dict(weights(painter_file(run, newest), "ema"))
    learned(vae).load_state_dict(weights(run / "decoder.safetensors", "net"))
    return Parts(unet, vae, reader.text, tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=RUNS / "shapes", help="folder of this run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="length of the UNet's training by the clock")
    parser.add_argument("--steps", type=int, help="the same in steps")
    parser.add_argument("--decoder-minutes", type=float, help="length of the decoder's training by the clock")
    parser.add_argument("--decoder-steps", type=int, help="the same in steps")
    parser.add_argument("--export", type=Path, metavar="PATH", help="write the weights of the run and stop")
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)  # of each of the two threads that share a batch
    recipe = Recipe(seed=given.seed)
    if given.export:
        from export import export

        export(trained(recipe, given.run), given.export)
        return
    recipe = replace(
        recipe,
        painter_plans=_shared(recipe.painter_plans, given.steps, given.minutes),
        decoder_plan=_timed(recipe.decoder_plan, given.decoder_steps, given.decoder_minutes),
    )
    run_recipe(recipe, given.run, given.device)


def _shared(plans: tuple[Plan, ...], steps: int | None, minutes: float | None) -> tuple[Plan, ...]:
    """The plans with a length of all together, shared out as their own minutes are."""
    whole = sum(plan.minutes or 0 for plan in plans)
    parts = [(plan.minutes or 0) / whole for plan in plans]
    return tuple(
        _timed(plan, steps and round(steps * part), minutes and minutes * part)
        for plan, part in zip(plans, parts, strict=True)
    )


def _timed(plan: Plan, steps: int | None, minutes: float | None) -> Plan:
    if steps is None and minutes is None:
        return plan
    return replace(plan, steps=steps, minutes=minutes)


if __name__ == "__main__":
    main()
