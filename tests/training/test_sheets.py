"""Sheets depend on the weights alone, as does the loss by time, which is that of the model that is left."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

import ldm
from ldm.errors import InputError
from ldm.training.data import Batches
from ldm.training.diffusion import Diffusion
from ldm.training.images import Images
from ldm.training.settings import DiffusionSettings, Sheet
from ldm.training.sheets import by_time, draw, prompts_of
from tests import tiny
from tests.reduced import REDUCED
from tests.training.albums import album
from tests.training.runs import SMALL, frozen, losses, metrics, place, told, train
from tests.training.test_diffusion import batch_of

SHEET = Sheet(every=1, prompts=("a dog", "a cat"), steps=2, seed=5)
MIDDLES = [f"loss_t{50 + 100 * k:03}" for k in range(10)]


def pixels(picture):
    return picture.convert("RGB").tobytes()


def test_a_sheet_depends_on_the_weights_alone():
    first, again, other = (draw(tiny.make(SMALL, seed), SHEET, SHEET.prompts) for seed in (0, 0, 1))
    assert pixels(first) == pixels(again) != pixels(other)
    assert first.size == (32, 16)
    assert pixels(draw(tiny.make(SMALL), replace(SHEET, seed=6), SHEET.prompts)) != pixels(first)
    assert pixels(draw(tiny.make(SMALL), replace(SHEET, guidance=1.0), SHEET.prompts)) != pixels(first)
    assert pixels(draw(tiny.make(SMALL), replace(SHEET, steps=3), SHEET.prompts)) != pixels(first)


def test_each_prompt_has_its_picture():
    """Left the first, right the second, each as the pipeline draws it with the seeds from `seed` on."""
    pipe = tiny.make(SMALL)
    whole = draw(pipe, SHEET, SHEET.prompts)
    result = pipe(list(SHEET.prompts), seed=5, num_inference_steps=2, progress=False)
    for i, picture in enumerate(result.images):
        part = whole.crop((16 * i, 0, 16 * (i + 1), 16)).convert("RGB")
        assert not ImageChops.difference(part, picture.convert("RGB")).getbbox()


def test_prompts_are_what_the_model_hears():
    assert prompts_of(SMALL, SHEET) == ["a dog", "a cat"] and prompts_of(SMALL, Sheet()) == []
    classes, none = REDUCED["ldm-cin256"], REDUCED["ldm-churches256"]
    assert prompts_of(classes, Sheet(prompts=("3", "1000"))) == [3, 1000]
    assert prompts_of(none, Sheet()) == [None] * 4
    for family, prompts, words in (
        (classes, ("a dog",), "sheet.prompts has 'a dog', but ldm-cin256 draws classes; give numbers"),
        (classes, ("1001",), "sheet.prompts must be from 0 to 1000"),
        (none, ("a dog",), "hears no prompts; take sheet.prompts out"),
    ):
        with pytest.raises(InputError, match=words):
            prompts_of(family, Sheet(prompts=prompts))


def test_the_loss_by_time_is_the_mean_of_each_image_s():
    """At t = 50, 150, …, with the same noise of each image, and nothing dropped however often that is."""
    pipe, batch = frozen(tiny.make(SMALL)), batch_of(SMALL, 3)
    found = by_time(Diffusion(pipe, DiffusionSettings(drop=1.0)), batch)
    assert list(found) == MIDDLES
    plain = Diffusion(pipe, DiffusionSettings(drop=0.0))
    for k, name in enumerate(MIDDLES):
        expected = plain.at(batch, range(3), torch.full((3,), 50 + 100 * k)).mean()
        assert found[name] == pytest.approx(float(expected), 1e-6)
    assert found == by_time(plain, batch)
    assert found == pytest.approx(by_time(plain, batch, most=2), 1e-6)
    assert found != by_time(Diffusion(pipe, DiffusionSettings(seed=1)), batch)
    assert found != by_time(Diffusion(frozen(tiny.make(SMALL, 1)), DiffusionSettings()), batch)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with sheets at 2 and 3, of 3 steps, and what it left."""
    folder = place(tmp_path_factory.mktemp("sheets"))
    sheet = {"every": 2, "prompts": ["a dog"], "images": 3, "seed": 4, "steps": 2}
    settings = told(folder, folder / "run", steps=3, sheet=sheet)
    return settings, train(settings)


def test_the_last_sheet_is_drawn_with_the_model_that_is_left(run):
    """Both have the averaged weights, bit for bit."""
    settings, (model, _) = run
    names = sorted(path.name for path in (Path(settings.out) / "sheets").iterdir())
    assert names == ["step-00000002.png", "step-00000003.png"]
    sheets = [Image.open(Path(settings.out) / "sheets" / name) for name in names]
    left = draw(ldm.load(model), settings.sheet, settings.sheet.prompts)
    assert pixels(sheets[1]) == pixels(left) != pixels(sheets[0])


def test_the_loss_by_time_is_of_the_model_that_is_left(run):
    settings, (model, _) = run
    images = Images(settings.data.path, size=16, seed=settings.seed)
    diffusion = Diffusion(ldm.load(model), settings)
    expected = by_time(diffusion, Batches(images, 3)[0])
    lines = [{k: v for k, v in line.items() if k in MIDDLES} for line in metrics(settings.out)]
    assert lines[0] == {} and lines[2] == pytest.approx(expected, rel=1e-6) != lines[1]


def test_sheets_change_nothing_that_is_trained(run, tmp_path):
    settings, (model, _) = run
    other, _ = train(replace(settings, out=str(tmp_path / "run"), sheet=Sheet()))
    mine, theirs = (ldm.load(path).unet.state_dict() for path in (model, other))
    assert tiny.same(mine, theirs)
    assert losses(settings.out) == losses(tmp_path / "run")


def test_pictures_of_another_folder_may_be_looked_at(run, tmp_path):
    settings, _ = run
    sheet = replace(settings.sheet, data=str(album(tmp_path / "other", 3)), images=2, prompts=())
    again = replace(settings, out=str(tmp_path / "run"), sheet=sheet, steps=2)
    train(again)
    lines = [metrics(each.out)[1] for each in (settings, again)]
    assert lines[0]["loss"] == lines[1]["loss"] and lines[0]["loss_t050"] != lines[1]["loss_t050"]
    assert not (tmp_path / "run" / "sheets").exists()
