"""Laws of the recipe's runs: what they see, how they go on, what they leave; and two processes are as one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "shapes"))

import decoding
import painting
import reading
import train as training
from card import write_card
from patches import principal
from recipe import Recipe, Stage, check, shared
from scenes import batch_of, batches, random, to_tensor, told
from train import main, recalled, trained

import ldm
from ldm.clip import CLIPConfig
from ldm.errors import InputError
from ldm.evaluation.shapes import SETS
from ldm.evaluation.shapes.scoring import make_prompts
from ldm.evaluation.shapes.world import HELD_OUT
from ldm.families import SHAPES
from ldm.family import Text
from ldm.ranks import Ranks
from ldm.training.checkpoints import latest
from ldm.training.loop import Run
from ldm.unet import UNetConfig
from ldm.vae import VAEConfig

ROOT = Path(__file__).parents[2]
SMALL = replace(
    SHAPES,
    unet=UNetConfig(4, 4, (8, 16), depth=(0, 1), res_blocks=1, context_dim=24, heads=2, groups=2),
    vae=VAEConfig((12, 48, 16), res_blocks=1, latent_channels=4, groups=4, scale=1.0),
    texts=(Text(CLIPConfig(width=24, layers=1, heads=3, hidden=96, vocab=771, length=32)),),
)
TINY = Recipe(
    reader=Stage(4, 8, 1e-3, warmup=1),
    decoder=Stage(4, 8, 1e-3, warmup=1),
    passes=(Stage(5, 8, 1e-3, warmup=1), Stage(5, 8, 1e-3, muon=True, warmup=1)),
    ema=0.9,
)


@pytest.fixture(scope="module", autouse=True)
def few_are_looked_at() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for stage, number in ((reading, 64), (decoding, 4), (painting, 8)):
            patch.setattr(stage, "LOOKED_AT", number)
        patch.setattr(training, "MEASURED", 64)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, as it was never interrupted."""
    folder = tmp_path_factory.mktemp("shapes") / "whole"
    training.train(TINY, folder, Ranks(), SMALL, every=4, progress=False)
    return folder


def test_a_row_is_a_scene_of_its_own_whatever_batch_and_process_it_is_in():
    projection = principal(to_tensor([told(0, row)[0] for row in range(64)]), 16)
    whole = batch_of(5, range(16, 24), projection)
    (second,) = islice(batches(5, 8, projection, Ranks())(2), 1)
    assert torch.equal(whole.images, second.images) and whole.prompts == second.prompts
    for rank in range(2):
        (own,) = islice(batches(5, 8, projection, Ranks(rank, 2))(2), 1)
        assert torch.equal(own.images, whole.images[rank::2]) and own.prompts == whole.prompts[rank::2]
    z, deviation = whole.images.chunk(2, dim=1)
    assert not deviation.any() and z.shape == (8, 16, 16, 16)
    assert len({scene for seed in (0, 1) for row in range(50) for scene in [told(seed, row)[0]]}) == 100


def test_training_shows_no_pair_of_the_judge_s_and_draws_from_other_seeds():
    shown = {(shape.colour, shape.kind) for row in range(2000) for shape in told(0, row)[0].shapes}
    assert not shown & HELD_OUT
    asked = {prompt for name in SETS for prompt in make_prompts(name, 100)}
    exact = {prompt for prompt in asked if len(prompt.wants) > 1 and all(want.size for want in prompt.wants)}
    said = {told(Recipe().seed_of(11), row)[1] for row in range(2000)}
    assert len(exact) > 20 and len(exact & said) <= 2  # the grammar may say the same by chance


def test_every_stage_has_a_seed_of_its_own():
    recipes = [Recipe(seed=seed) for seed in range(3)]
    seeds = [recipe.seed_of(stream) for recipe in recipes for stream in range(20)]
    assert len(set(seeds)) == len(seeds)
    draws = [random(seed, row).integers(2**62) for seed in (0, 1, 1000) for row in range(50)]
    assert len(set(draws)) == len(draws)


def test_the_decoder_sees_whole_pictures_and_quarters_of_the_same():
    whole, quarters = decoding.pictures(3, 0, range(4)), decoding.pictures(3, 2, range(4))
    assert whole.shape == (4, 3, 64, 64) and quarters.shape == (4, 3, 32, 32)
    for picture, quarter in zip(whole, quarters, strict=True):
        windows = picture.unfold(1, 32, 1).unfold(2, 32, 1)  # [c y x 32 32]
        assert (windows == quarter[:, None, None]).all(-1).all(-1).all(0).any()


@pytest.mark.slow
def test_a_run_that_stops_and_goes_on_makes_the_same_weights(run: Path, tmp_path: Path):
    whole = Run.step
    for steps in (5, 7, 6):  # in the decoder, which begins anew; after 3 of the first pass; of the second
        left = iter(range(steps))

        def stopped(self: Run, left: Iterator[int] = left) -> dict[str, float]:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return whole(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "step", stopped)
            with pytest.raises(KeyboardInterrupt):
                training.train(TINY, tmp_path, Ranks(), SMALL, every=4, progress=False)
    assert [latest(tmp_path / name).step for name in ("decoder", "pass-1", "pass-2")] == [4, 5, 2]
    pipe = training.train(TINY, tmp_path, Ranks(), SMALL, every=4, progress=False)
    for name in ("reader", "decoder", "pass-1", "pass-2"):
        a, b = latest(run / name).tensors, latest(tmp_path / name).tensors
        assert a.keys() == b.keys()
        for group in a:
            assert a[group].keys() == b[group].keys()
            assert all(torch.equal(a[group][key], b[group][key]) for key in a[group])
    unet = trained(run, SMALL).unet.state_dict()
    assert all(torch.equal(unet[name], x) for name, x in pipe.unet.state_dict().items())


def test_what_a_run_has_made_is_put_together(run: Path):
    pipe = trained(run, SMALL)
    begun, projection = training.beginning(TINY, run, family=SMALL), latest(run / "decoder")
    assert not any(p.requires_grad for network in pipe.networks() for p in network.parameters())
    for network, before in zip(pipe.networks(), begun.networks(), strict=True):
        moved = {
            name for name, p in network.state_dict().items() if not torch.equal(p, before.state_dict()[name])
        }
        kept = network.state_dict().keys() - moved
        assert moved and not any(name.startswith(("encoder.", "to_moments.")) for name in moved)
        assert network is pipe.vae or len(kept) < len(moved)
    assert projection.step == TINY.decoder.steps and recalled(run) == TINY
    assert len(list((run / "pass-1" / "sheets").iterdir())) == 2  # after 4 and 5 steps


def test_the_card_tells_what_was_done(run: Path):
    percent = {"one": {"colour": 99.8, "right": 97.25}}
    scores = {"prompts": 4, "seed": 1, "percent": percent}
    text = write_card(trained(run, SMALL), TINY, run, scores, 1).read_text("utf-8")
    assert "from\nnothing" in text and "saw 80 scenes" in text
    assert "| reader | AdamW, 0.001 | 4 | 8 |" in text and "| pass-2 | Muon, 0.001 | 5 | 8 |" in text
    assert "| one | 99.8 | 97.2 |" in text or "| one | 99.8 | 97.3 |" in text
    lines = (run / "pass-2" / "metrics.jsonl").read_text("utf-8").splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 5 and f"{last['loss_t050']:.4f}" in text
    unjudged = write_card(trained(run, SMALL), TINY, run, {}, 1).read_text("utf-8")
    assert "Scores" not in unjudged and text.startswith(unjudged.partition("## Settings")[0])


def test_a_run_goes_on_only_with_its_own_recipe(run: Path):
    with pytest.raises(InputError, match="seed"):
        training.train(replace(TINY, seed=1), run, Ranks(), SMALL, progress=False)
    with pytest.raises(InputError, match=r"run\.json"):
        recalled(run / "reader")


@pytest.mark.parametrize(
    ("recipe", "world", "words"),
    [
        (replace(TINY, reader=Stage(4, 9, 1e-3, warmup=1)), 2, "reader, 9, is not a multiple of 2"),
        (replace(TINY, decoder=Stage(4, 12, 1e-3, warmup=1)), 2, "decoder, 12, is not a multiple of 8"),
        (replace(TINY, passes=(Stage(50, 8, 1e-3),)), 1, "steps of pass 1"),
        (replace(TINY, seed=-1), 1, "seed"),
        (replace(TINY, reader=Stage(4, 0, 1e-3, warmup=1)), 1, "batch of reader"),
        (replace(TINY, reader=Stage(4, 8, 0.0, warmup=1)), 1, "rate of reader"),
        (replace(TINY, decoder=Stage(4, 8, -1e-3, warmup=1)), 1, "rate of decoder"),
        (replace(TINY, passes=(Stage(5, 8, float("nan"), warmup=1),)), 1, "rate of pass 1"),
        (replace(TINY, passes=(Stage(5, 8, 1.0, warmup=1),)), 1, "rate of pass 1"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_one_sentence(recipe: Recipe, world: int, words: str):
    with pytest.raises(InputError, match=words):
        check(recipe, world)


def test_the_recipe_has_the_steps_of_the_shipped_run_and_may_be_shortened():
    passes = Recipe().passes
    check(Recipe(), 2)
    assert [stage.steps for stage in passes] == [21_750, 3900, 23_000, 2650, 12_850, 4250]
    half = shared(passes, 34_200)
    assert sum(stage.steps for stage in half) == pytest.approx(34_200, abs=3)
    assert [stage.rate for stage in half] == [stage.rate for stage in passes]
    check(replace(Recipe(), passes=shared(passes, 2607)))
    with pytest.raises(InputError, match="from 2607"):  # the shortest must be longer than its warmup
        shared(passes, 2606)


def test_one_command_goes_on_from_the_bundled_model(tmp_path: Path, monkeypatch, capsys):
    short = lambda given: Recipe(source=given.source, passes=(Stage(2, 4, 1e-3, True, 1),))  # noqa: E731
    monkeypatch.setattr(training, "recipe_of", short)
    monkeypatch.setattr(training, "SETS", ("one",))
    words = ["--run", str(tmp_path), "--number", "1", "--device", "cpu", "--from"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "nowhere"])
    with pytest.raises(SystemExit):
        main()
    assert not list(tmp_path.iterdir())  # so that the command, put right, is not another one's
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "bundled"])
    main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "card.md")
    card = (tmp_path / "card.md").read_text("utf-8")
    assert "the model in the package" in card and "reader" not in card and "## Scores" in card
    assert json.loads((tmp_path / "scores.json").read_text("utf-8"))["percent"].keys() == {"one"}
    made, before = ldm.load(tmp_path / "model"), ldm.load()
    for name, network in made.named_networks().items():
        old = before.named_networks()[name].state_dict()
        same = [torch.equal(p, old[key]) for key, p in network.state_dict().items()]
        assert all(same) if name != "unet" else not all(same)
    moved = (made.unet.conv_in.weight - before.unet.conv_in.weight).abs().max()
    assert 0 < moved < 0.01 and made.family == before.family
    assert all(p.isfinite().all() for p in trained(tmp_path).unet.parameters())


TWO = """
import sys
sys.path[:0] = ["examples/shapes", "tests/examples"]
from pathlib import Path
from ldm.ranks import joined
from test_shapes_training import SMALL, TINY
import train
train.MEASURED = 64
with joined("cpu") as ranks:
    train.train(TINY, Path(sys.argv[1]), ranks, SMALL, every=4, progress=False)
    ranks.wait()
"""


@pytest.mark.slow
def test_two_processes_are_as_one(run: Path, tmp_path: Path):
    script, folder = tmp_path / "two.py", tmp_path / "two"
    script.write_text(TWO, "utf-8")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", script, folder]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, timeout=600)
    for name in ("reader", "decoder", "pass-1", "pass-2"):
        text = [(each / name / "metrics.jsonl").read_text("utf-8") for each in (run, folder)]
        one, two = ([json.loads(line) for line in lines.splitlines()] for lines in text)
        assert [line["step"] for line in one] == [line["step"] for line in two]
        assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-4)
        one, two = latest(run / name).tensors["weights"], latest(folder / name).tensors["weights"]
        # a softmax does not see the bias of keys: its gradient is rounding, which AdamW makes large
        heard = {key: x for key, x in one.items() if not key.endswith(".k.bias")}
        apart = {key: float((x - two[key]).abs().max()) for key, x in heard.items()}
        assert max(apart.values()) < 1e-4, max(apart, key=lambda key: apart[key])
