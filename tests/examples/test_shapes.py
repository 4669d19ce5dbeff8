"""Laws of the recipe of the bundled model."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "shapes"))

from evaluate import main as evaluate
from muon import Muon, polar, split
from patches import Projection, principal, project, projection_of, to_patches
from reading import QUESTIONS, answers
from recipe import Recipe, from_nothing, make_tokenizer
from repaint import cases, score
from scenes import to_tensor
from trials import TRIALS

import ldm
from ldm.clip import Tokenizer
from ldm.errors import InputError
from ldm.evaluation.shapes.captions import Prompt, Want, describe
from ldm.evaluation.shapes.judge import judge
from ldm.families import SHAPES
from ldm.training.states import flatten_optimiser, restore_optimiser
from tests.evaluation.scenes import some_scenes

LENGTH = SHAPES.texts[0].config.length


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(LENGTH)


def test_every_caption_fits_and_every_word_is_one_token(tokenizer: Tokenizer):
    rng = np.random.default_rng(0)
    for scene in some_scenes(2000):
        pieces = tokenizer.pieces(describe(scene, rng).text)
        assert len(pieces) <= LENGTH - 2
        assert all(piece.endswith("</w>") for piece in pieces)


def test_other_words_still_have_tokens(tokenizer: Tokenizer):
    assert tokenizer.encode("zebra") and len(tokenizer.encode("zebra")) > 1


def test_the_encoder_is_the_projection():
    images = to_tensor(some_scenes(16))
    projection = principal(images, SHAPES.vae.latent_channels)
    vae = from_nothing(Recipe(), projection).vae
    with torch.no_grad():
        error = (vae.encode(images) - project(images, projection)).abs()
    # a SiLU lifted by 12 is off the identity by at most x / (1 + exp(x)) = 0.012 at x = 12 - 5
    assert error.max() < 0.012
    assert error.mean() < 1e-3
    assert all(torch.equal(a, b) for a, b in zip(projection_of(vae), projection, strict=True))


def test_the_bundled_encoder_is_a_projection_too():
    vae, images = ldm.load().vae, to_tensor(some_scenes(8))
    with torch.no_grad():
        assert (vae.encode(images) - project(images, projection_of(vae))).abs().mean() < 1e-3


def test_of_a_trained_encoder_no_projection_is_guessed(pipe: ldm.Pipeline):
    spoiled = ldm.load(copy=True).vae
    with torch.no_grad():
        spoiled.encoder.down[2].res[0].skip.weight[0] += 1e-3
    for vae in (spoiled, pipe.vae):
        with pytest.raises(InputError, match="bundled model"):
            projection_of(vae)


def test_the_projection_keeps_most_of_a_picture():
    images = to_tensor(some_scenes(64))
    weight, bias = principal(images, 8)
    z = rearrange(project(images, Projection(weight, bias)), "b k h w -> (b h w) k")
    patches = to_patches(images).reshape(-1, 48)
    back = (z - bias) @ torch.linalg.pinv(weight).T
    lost = (back - patches).square().mean() / (patches - patches.mean(0)).square().mean()
    # eight of 48 directions; what edges are made of is spread over the other forty
    assert lost < 0.03


def test_muon_makes_singular_values_about_one():
    torch.manual_seed(0)
    for m in (torch.randn(96, 864), torch.randn(40, 10), torch.randn(8, 8) * 1e-6, torch.randn(8, 9) * 1e-11):
        found, (u, s, v) = polar([m])[0], torch.linalg.svd(m, full_matrices=False)
        values = u.mT @ found @ v.mT
        off = values - torch.diag(values.diag())
        assert off.abs().max() < 1e-3  # the singular vectors stay
        large = s > 0.1 * s.max()  # of the smallest four rounds make less
        assert values.diag()[large].min() > 0.5 and values.diag().max() < 1.25


def test_muon_takes_a_step_of_the_size_of_its_rate():
    p = torch.nn.Parameter(torch.zeros(16, 16))
    p.grad = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    Muon([p], [], lr=0.1).step()
    assert 0.1 < p.detach().square().mean().sqrt() / (0.1 * 0.2) < 1.3  # about 0.2 in the root mean square
    assert (p * p.grad).sum() < 0
    assert not polar([torch.zeros(3, 4)])[0].any()


def test_muon_s_other_parameters_take_adamw_s_steps():
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(5))
    theirs = torch.nn.Parameter(ours.detach().clone())
    mine, adam = Muon([], [ours], 0.1), torch.optim.AdamW([theirs], 0.1, betas=(0.9, 0.99))
    for _ in range(5):
        theirs.grad = torch.randn(5)
        ours.grad = theirs.grad.clone()
        mine.step()
        adam.step()
        assert torch.allclose(ours, theirs, rtol=1e-5)


def test_muon_goes_on_from_its_state():
    def net() -> torch.nn.Module:
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))

    def steps(net: torch.nn.Module, optimiser: Muon) -> None:
        for _ in range(3):
            optimiser.zero_grad()
            net(torch.ones(2, 4)).square().sum().backward()
            optimiser.step()

    once, again = net(), net()
    first = Muon(*split(once), 0.01)
    steps(once, first)
    again.load_state_dict(once.state_dict())
    second = Muon(*split(again), 0.01)
    second.load_state_dict(restore_optimiser(*flatten_optimiser(deepcopy(first.state_dict()))))
    steps(once, first)
    steps(again, second)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))


def test_muon_turns_all_but_the_ends_of_a_unet():
    matrices, others = split(ldm.load().unet)
    assert len(matrices) + len(others) == len(list(ldm.load().unet.parameters()))
    assert all(p.ndim > 1 for p in matrices) and sum(p.ndim > 1 for p in others) == 2


def test_what_a_reader_should_say():
    star, ring = Want("star", "green", "small"), Want("ring", "red")
    said = answers(Prompt("a small green star left of a red ring", (star, ring), "left"))
    words = [
        known[answer - 1] if answer else None
        for answer, known in zip(said, [*QUESTIONS.values()] * 3, strict=False)
    ]
    assert words[:6] == ["star", "green", "small", None, None, "left"]
    assert words[6:12] == ["ring", "red", None, None, None, "right"]
    assert words[12:] == [None] * 6 and said[18:] == [0]


def test_cases_of_repainting_ask_for_what_is_not_there_and_hide_one_shape():
    for picture, mask, prompt in cases(20):
        assert not judge(picture, prompt).right and 0.1 < mask.mean() < 0.9
        ground = picture[0, 0]
        for half in (mask, ~mask):
            assert (np.abs(picture.astype(int) - ground).sum(-1)[half] > 60).sum() > 10  # a shape in each


def test_a_model_is_evaluated_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    told = ["--number", "2", "--sets", "one", "--steps", "1", "--json", str(tmp_path / "table.json")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *told])
    evaluate()
    head, row, time = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "right" and row.split()[0] == "one" and time.endswith("one picture alone")
    assert json.loads((tmp_path / "table.json").read_text())["prompts"] == 2


@pytest.mark.slow
def test_half_a_scene_is_repainted_and_the_other_half_keeps_every_byte():
    found = score(ldm.load(), 30)
    assert found["kept"] == 100 and found["right"] >= 80


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trial", "good"),
    [
        ("outpainting", lambda found: found["kept"] == 100 and found["right"] >= 60),
        ("upscaling", lambda found: found["better"] >= 95 and found["ours"] > found["bicubic"] + 2),
        ("denoising", lambda found: all(level["least gain"] > 0 for level in found.values())),
        ("enlarging", lambda found: found["two passes"] >= 80 and found["at once"] < 40),
        ("interpolation", lambda found: found["ends equal"] == 100 and found["ends right"] >= 80),
        ("inversion", lambda found: found["least"] > 35),
        ("editing", lambda found: found["right"] >= 80 and found["kept"] > 40),
        ("varying", lambda found: found["right"] >= 70 and found["other"] > 0),
        ("drawing_over", lambda found: found["right at 0.9"] >= 70 > found["right at 0.5"]),
    ],
)
def test_what_is_done_with_pictures_is_judged_good(trial, good):
    assert good(TRIALS[trial](ldm.load(), 10))
