"""What makes no sense is told before the first step, and what is unusual is said."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ldm
from ldm.cli import main
from ldm.errors import CheckpointError, InputError
from ldm.families import SD1
from ldm.ranks import Ranks
from ldm.schedulers.spacing import leading, trailing
from ldm.training.diffusion import changed
from ldm.training.places import listed
from ldm.training.recipes import train_inversion, train_lora
from ldm.training.session import check_divides
from ldm.training.settings import Data, DiffusionSettings, InversionSettings, LoraSettings, at_home
from tests.tiny import read_all
from tests.training.albums import album
from tests.training.runs import is_sentence, metrics, place, told, train, words


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return place(tmp_path_factory.mktemp("once"))


@pytest.fixture
def never(monkeypatch):
    monkeypatch.setattr("ldm.training.loop.Run.step", lambda *_: pytest.fail("a step was taken"))


def test_a_folder_with_other_things_where_the_model_will_be(folder, tmp_path, never):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="model is a folder with other things in it"):
        train(told(folder, tmp_path / "run"))


ODD = {
    "scores.json": (["{", "[1]", "\xff"], r"scores\.json .*; move it"),
    "metrics.jsonl": (
        ['{"loss": 1}\n', "\0\0}\n", "\xff}\n", "[1, {}]}\n", '"step"}\n', "3}\n"],
        r"metrics\.jsonl is not what training wrote: .*; move it",
    ),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in ODD for text in ODD[name][0]])
def test_files_of_a_run_that_are_none(folder, tmp_path, never, name, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text(text, "latin-1")
    with pytest.raises(InputError, match=ODD[name][1]) as caught:
        train(told(folder, tmp_path / "run"))
    assert is_sentence(caught.value)


@pytest.mark.parametrize(("batch", "parts", "size"), [(4, 1, 3), (4, 2, 4), (6, 3, 4)])
def test_a_batch_that_ranks_cannot_share(folder, tmp_path, batch, parts, size):
    settings = told(folder, tmp_path, batch=batch, accumulate=parts)
    sentence = f"batch {batch} cannot be shared equally by {size} processes in accumulate {parts} parts"
    with pytest.raises(InputError, match=sentence):
        check_divides(settings, Ranks(0, size))
    check_divides(settings, Ranks(0, 1))


@pytest.mark.parametrize(
    ("kind", "begin"), [(LoraSettings, train_lora), (InversionSettings, train_inversion)]
)
def test_little_is_added_to_what_knows_nothing(folder, tmp_path, kind, begin):
    more = {"token": "<dog>"} if kind is InversionSettings else {}
    with pytest.raises(InputError, match="model sd1 would have random weights"):
        begin(told(folder, tmp_path, kind, model="sd1", **more))
    with pytest.raises(InputError, match="unet would have random weights"):
        begin(told(folder, tmp_path, kind, fresh=["unet"], **more))


def test_random_networks_that_nothing_trains_are_told(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ldm"):
        train(told(folder, tmp_path / "a", steps=1, fresh=["unet"]))
        assert not caplog.text
        train(told(folder, tmp_path / "b", steps=1, fresh=["unet", "vae"]))
    assert "vae: random weights that nothing trains" in caplog.text


def test_home_is_a_folder(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    album(tmp_path / "pictures", 4)
    settings = told(folder, Path("~/run"), steps=2, data={"path": "~/pictures", "cache": "~/kept"})
    assert main(["train", "diffusion", *words(settings)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run", "pictures", "kept"}
    assert listed(tmp_path / "run") and ldm.load(tmp_path / "run" / "model")
    capsys.readouterr()
    assert main(["train", "diffusion", *words(settings)]) == 2
    assert "add --resume" in capsys.readouterr().err


def test_going_on_with_nothing_is_told(folder, tmp_path, caplog):
    settings = told(folder, tmp_path / "run", steps=1)
    with caplog.at_level(logging.WARNING, "ldm"):
        assert main(["train", "diffusion", "--resume", *words(settings)]) == 0
        assert "has no checkpoint to go on from" in caplog.text
        caplog.clear()
        assert main(["train", "diffusion", "--resume", *words(settings)]) == 0
        assert not caplog.text


# of a new word


def word(folder, out, **more):
    return told(folder, out, InversionSettings, **{"token": "<dog>", "init": "a", "steps": 1, **more})


@pytest.mark.parametrize("template", ["a photo", "{} and {}", ""])
def test_a_template_without_a_place(folder, tmp_path, never, template):
    with pytest.raises(InputError, match=r"template .* must have one \{\}"):
        train_inversion(word(folder, tmp_path, template=template, data={"path": str(folder / "alone")}))


def test_captions_without_the_word(folder, tmp_path, never):
    with pytest.raises(InputError, match=r"the caption of 00\.png, 'text 0', lacks '<dog>'") as caught:
        train_inversion(word(folder, tmp_path))
    assert is_sentence(caught.value)


def test_images_alone_are_told_the_template(folder, tmp_path, monkeypatch):
    heard = []
    real = ldm.training.diffusion.Diffusion.encoded
    monkeypatch.setattr(
        "ldm.training.diffusion.Diffusion.encoded",
        lambda self, prompts: heard.extend(prompts) or real(self, prompts),
    )
    alone = {"path": str(folder / "alone")}
    train_inversion(word(folder, tmp_path / "a", template="my {} here", drop=0.0, data=alone), progress=False)
    assert set(heard) == {"my <dog> here"}
    assert metrics(tmp_path / "a")[-1]["norm"] > 0


def test_captions_with_the_word_are_as_they_are(folder, tmp_path):
    data = album(tmp_path / "album", 4)
    table = data / "metadata.jsonl"
    table.write_text(re.sub(r"text (\d)", r"<dog> \1", table.read_text()))
    train_inversion(word(folder, tmp_path / "run", drop=0.0, data={"path": str(data)}), progress=False)
    assert metrics(tmp_path / "run")[-1]["norm"] > 0


# what a model becomes


def test_without_signal_at_the_end_sampling_begins_there(folder, tmp_path):
    settings = told(folder, tmp_path / "run", zero_snr=True, prediction="v", steps=1)
    assert changed(SD1, replace(settings, zero_snr=False)).spacing is leading
    assert changed(SD1, settings).spacing is trailing
    train(settings)
    family = ldm.load(tmp_path / "run" / "model").family
    (first, *_) = family.spacing(family.schedule, 10)
    assert (family.spacing, first.t) == (trailing, 999) and first.alpha < 1e-3


def test_another_size_is_the_models(folder, tmp_path):
    settings = told(
        folder, tmp_path / "run", steps=1, data={"size": 32}, sheet={"every": 1, "prompts": ["a"]}
    )
    train(settings)
    pipe = ldm.load(tmp_path / "run" / "model")
    assert pipe.family.size == 32 and pipe("a", progress=False)[0].size == (32, 32)


# where it is written


@pytest.mark.parametrize("name", ["card.md", "lora-kohya.safetensors"])
def test_a_folder_where_a_file_will_be(folder, tmp_path, never, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=f"{name} is a folder, where a file will be written"):
        train_lora(told(folder, tmp_path / "run", LoraSettings))


@pytest.mark.parametrize("inside", [".", "run", "runs/a"])
def test_no_run_is_among_its_data(folder, never, inside):
    with pytest.raises(InputError, match="is in the folder of the data"):
        train(told(folder, folder / "album" / inside))
    assert not [path for path in (folder / "album").iterdir() if path.is_dir()]


def test_one_run_at_a_time(folder, tmp_path):
    settings = told(folder, tmp_path / "run", steps=2, save_every=1)
    said = []

    def another(step, _):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match="is where another run is training now") as caught:
            train(settings)
        said.append(is_sentence(caught.value) and before == sorted(tmp_path.rglob("*")))

    train(settings, watch=another)
    assert said == [True, True]
    train(replace(settings, steps=3))


def test_what_is_saved_has_the_type_that_was_asked_for(folder, tmp_path):
    more = {"steps": 1, "saved": "fp16"}
    paths = train_lora(told(folder, tmp_path / "lora", LoraSettings, **more), progress=False)
    alone = {"path": str(folder / "alone")}
    paths += train_inversion(word(folder, tmp_path / "word", data=alone, **more), progress=False)
    tensors = [pair for path in paths if path.suffix == ".safetensors" for pair in read_all(path).items()]
    kinds = {x.dtype for name, x in tensors if not name.endswith(".alpha")}
    assert kinds == {torch.float16}


# made in Python


def test_paths_and_lists_are_as_good_as_texts_and_tuples(folder, tmp_path):
    data = Data(path=folder / "album", size=16)
    settings = DiffusionSettings(
        out=tmp_path / "run", model=folder / "model", data=data, steps=1, batch=2, networks=["unet"], rate=1
    )
    assert at_home(settings).networks == ("unet",) and isinstance(at_home(settings).rate, float)
    train(settings)


MISTAKEN = {
    "data": ({"data": "album"}, "data must be a table, not 'album'"),
    "betas": ({"betas": 0.9}, "betas must be a list, not 0.9"),
    "networks": ({"networks": "unet"}, "networks must be a list, not 'unet'"),
    "model": ({"model": None}, "model must be a text, not None"),
    "data.size": ({"data": Data(size="16")}, r"data\.size must be a whole number, not '16'"),
    "steps": ({"steps": True}, "steps must be a whole number, not True"),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_fields_of_another_type(tmp_path, name):
    more, words = MISTAKEN[name]
    with pytest.raises(InputError, match=f"DiffusionSettings: {words}"):
        train(DiffusionSettings(out=str(tmp_path), **more))
