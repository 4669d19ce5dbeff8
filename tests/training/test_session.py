"""Runs from settings: interrupted or not they are one, they learn, and leave a model that loads."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ldm
from ldm.errors import CheckpointError, InputError, NumericError
from ldm.families import FAMILIES
from ldm.training.checkpoints import latest
from ldm.training.ema import trained
from ldm.training.loop import METRICS
from ldm.training.places import listed
from ldm.training.recipes import train_inversion, train_lora
from ldm.training.settings import InversionSettings, LoraSettings
from tests import reduced, tiny
from tests.tiny import error, same
from tests.training.albums import album, write
from tests.training.faults import Opened, System
from tests.training.runs import (
    content,
    finite,
    is_sentence,
    losses,
    metrics,
    numbers,
    place,
    told,
    train,
    train_until,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return place(tmp_path_factory.mktemp("session"))


@pytest.fixture(scope="module")
def done(folder):
    """A run of 4 steps, and where it is."""
    settings = told(folder, folder / "done", save_every=2)
    return settings, train(settings)


# going on


WAYS = {
    "plain": {},
    "parts": {"accumulate": 2},
    "workers": {"accumulate": 2, "data": {"workers": 2, "crop": "random", "flip": 0.5}, "schedule": "cosine",
                "warmup": 2, "networks": ["unet", "text_encoder"]},
    "remembered": {"data": {"cache": "CACHE"}, "ema": 0.0, "times": "stratified", "recompute": True},
}  # fmt: skip


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if i == 2 else pytest.mark.slow) for i, way in enumerate(WAYS)]
)
def test_a_run_that_was_left_is_the_one_that_was_not(folder, tmp_path, way):
    """Left after step 5, of which 4 are safe: weights, averages, optimiser and metrics, bit for bit."""
    options = json.loads(json.dumps(WAYS[way]).replace("CACHE", str(tmp_path / "cache")))
    whole, left = (told(folder, tmp_path / name, steps=6, save_every=2, **options) for name in ("a", "b"))
    train(whole)
    train_until(5, left)
    assert latest(left.out).step == 4 and len(losses(left.out)) == 5
    train(left)
    assert same(content(left.out), content(whole.out))
    assert numbers(left.out) == numbers(whole.out)
    assert [line["step"] for line in metrics(left.out)] == list(range(1, 7))
    files = [tiny.read_all(Path(s.out) / "model" / "unet" / "diffusion_pytorch_model.safetensors")
             for s in (whole, left)]  # fmt: skip
    assert same(*files)
    assert len(set(losses(left.out))) == 6  # no step is like another, so one that were taken twice would tell


def test_a_run_that_is_done_is_done(done):
    settings, paths = done
    before, lines = content(settings.out), metrics(settings.out)
    assert train(settings) == paths
    assert same(content(settings.out), before) and metrics(settings.out) == lines


CHANGED = {
    "rate": {"rate": 2e-3}, "batch": {"batch": 8}, "seed": {"seed": 1}, "ema": {"ema": 0.5},
    "data.flip": {"data": {"flip": 0.5}}, "networks": {"networks": ["text_encoder"]}, "drop": {"drop": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_another_config_is_refused_by_its_fields(done, folder, name):
    settings, _ = done
    before = content(settings.out)
    with pytest.raises(InputError, match=rf"begun with another config .*{name}: was") as caught:
        train(told(folder, settings.out, save_every=2, steps=9, **CHANGED[name]))
    assert is_sentence(caught.value) and same(content(settings.out), before)


def test_free_fields_may_change_and_a_constant_rate_may_go_on(folder, tmp_path):
    settings = told(folder, tmp_path / "run", steps=2)
    train(settings)
    sheet = {"every": 2, "images": 2}
    free = {"save_every": 1, "keep": 1, "log_every": 3, "recompute": True, "saved": "fp16", "sheet": sheet}
    train(told(folder, settings.out, steps=4, **free, data={"cache": str(tmp_path / "cache")}))
    assert [path.name for path in listed(settings.out)] == ["step-00000004"]
    train(told(folder, tmp_path / "whole", steps=4))
    # remembered latents are encoded one by one, so that only their rounding differs
    pairs = [content(out)["weights.unet.conv_out.weight"] for out in (settings.out, tmp_path / "whole")]
    assert error(*pairs) < 1e-3
    saved = tiny.read_all(Path(settings.out) / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {x.dtype for x in saved.values()} == {torch.float16}
    fading = told(folder, tmp_path / "fading", steps=1, schedule="linear")
    train(fading)
    with pytest.raises(InputError, match="steps: was 1, is 2"):
        train(replace(fading, steps=2))


# learning


def test_one_batch_is_learnt_by_heart(folder, tmp_path):
    """The same batch and noise in each step: the loss falls below a third; else each step has its own."""
    heart = told(folder, tmp_path / "heart", steps=30, overfit=True, rate=1e-2, fresh=["unet"], ema=0.0)
    train(heart)
    found = losses(heart.out)
    assert found[-1] < found[0] / 3
    first = [told(folder, tmp_path / name, steps=2, rate=0.0, overfit=name == "same", decay=0.0)
             for name in ("same", "free")]  # fmt: skip
    for settings in first:
        train(settings)
    same_, free = (losses(settings.out) for settings in first)
    assert same_[0] == same_[1] == free[0] != free[1]


def test_the_averaged_weights_are_what_is_left(done):
    """The model is that of the last averages, in the layout of diffusers, and draws."""
    settings, (model, card) = done
    assert model == Path(settings.out) / "model" and card == Path(settings.out) / "card.md"
    pipe, begun, found = ldm.load(model), ldm.load(settings.model), latest(settings.out)
    averages = {k.removeprefix("shadow.unet."): v for k, v in found.tensors["ema"].items() if k != "count"}
    assert same(dict(pipe.unet.named_parameters()), averages)
    last = {k.removeprefix("unet."): v for k, v in found.tensors["weights"].items() if k.startswith("unet.")}
    assert not same(last, averages)
    assert not same(dict(begun.unet.named_parameters()), averages)
    for name in ("vae", "text_encoder"):
        mine, theirs = (each.named_networks()[name].state_dict() for each in (pipe, begun))
        assert same(mine, theirs)
    assert pipe.family == begun.family
    assert pipe("a dog", seed=0, progress=False).images[0].size == (16, 16)
    assert not trained(pipe.unet)


@pytest.mark.parametrize(
    ("prediction", "zero_snr"), [("v", True), pytest.param("x0", False, marks=pytest.mark.slow)]
)
def test_another_target_and_schedule_come_back(folder, tmp_path, prediction, zero_snr):
    settings = told(folder, tmp_path / "run", steps=1, prediction=prediction, zero_snr=zero_snr)
    model, _ = train(settings)
    family = ldm.load(model).family
    assert family.prediction.name == prediction and family.schedule.zero_snr == zero_snr
    again = told(folder, tmp_path / "again", steps=1, model=str(model))
    train(again)
    assert ldm.load(Path(again.out) / "model").family == family


def test_the_text_encoder_is_trained_with_the_unet(folder, tmp_path):
    settings = told(folder, tmp_path / "run", steps=2, networks=["unet", "text_encoder"], drop=0.0)
    model, _ = train(settings)
    pipe, begun = ldm.load(model), ldm.load(settings.model)
    for name in ("unet", "text_encoder", "vae"):
        mine, theirs = (each.named_networks()[name].state_dict() for each in (pipe, begun))
        assert same(mine, theirs) == (name == "vae")


# where it begins


def test_a_family_begins_from_nothing(folder, tmp_path, monkeypatch):
    """Its UNet alone is trained: of the other networks not a bit changes, and no gradient is kept."""
    family = reduced.REDUCED["sd1"]
    monkeypatch.setitem(FAMILIES, "sd1", replace(family, size=64))
    settings = told(folder, tmp_path / "run", steps=2, model="sd1", data={"size": 64}, batch=2, ema=0.0)
    model, _ = train(settings)
    pipe, begun = ldm.load(model), ldm.training.from_nothing(FAMILIES["sd1"], settings.seed)
    for name in ("unet", "text_encoder", "vae"):
        mine, theirs = (each.named_networks()[name].state_dict() for each in (pipe, begun))
        assert same(mine, theirs) == (name != "unet")
    keys = latest(settings.out).tensors["weights"]
    assert keys and all(key.startswith("unet.") for key in keys)


def test_a_network_may_begin_anew(folder, tmp_path):
    settings = told(folder, tmp_path / "run", steps=1, fresh=["unet"], rate=0.0, decay=0.0, ema=0.0)
    model, _ = train(settings)
    pipe, begun = ldm.load(model), ldm.load(settings.model)
    assert not pipe.unet.conv_out.weight.any() and begun.unet.conv_out.weight.any()
    assert same(pipe.vae.state_dict(), begun.vae.state_dict())
    assert same(pipe.text_encoders[0].state_dict(), begun.text_encoders[0].state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_an_official_file_is_tuned(folder, tmp_path, name):
    """A small file as the official ones are, and a joint text encoder, some of whose layers nobody hears."""
    path = reduced.saved(name, tmp_path / "official.safetensors")
    texts = [text.name for text in reduced.REDUCED[name].texts]
    settings = told(folder, tmp_path / "run", steps=2, model=str(path), data={"size": 64}, batch=2, ema=0.0,
                    networks=["unet", *texts], save_every=1)  # fmt: skip
    if name == "sdxl":
        train_until(1, settings)
    model, _ = train(settings)
    pipe, begun = ldm.load(model), ldm.load(path)
    assert pipe.family.unet == begun.family.unet and pipe.family.texts == begun.family.texts
    for mine, theirs in zip(pipe.networks(), begun.networks(), strict=True):
        assert same(mine.state_dict(), theirs.state_dict()) == (mine is pipe.vae)


@pytest.mark.slow
def test_the_model_in_the_package_is_tuned(folder, tmp_path):
    settings = told(folder, tmp_path / "run", steps=2, model="", data={"size": 64}, batch=2)
    model, _ = train(settings)
    assert ldm.load(model).family.unet == ldm.load().family.unet


# other kinds


@pytest.mark.parametrize("averaged", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_lora_and_a_word_go_on_and_are_left(folder, tmp_path, averaged):
    """Each is trained, left, gone on with, and loads; of the model nothing else changes."""
    more = {"steps": 3, "save_every": 1, "ema": 0.9 if averaged else 0.0, "rate": 1e-2}
    lora = told(folder, tmp_path / "lora", LoraSettings, rank=2, **more)
    alone = {"path": str(folder / "alone")}
    word = told(folder, tmp_path / "word", InversionSettings, token="<dog>", init="a", data=alone, **more)
    for begin, settings in ((train_lora, lora), (train_inversion, word)):
        with pytest.raises(KeyboardInterrupt):
            begin(settings, watch=stop_at_two, progress=False)
        paths = begin(settings, progress=False)
        assert all(path.is_file() for path in paths) and len(losses(settings.out)) == 3
    plain = ldm.load(lora.model)
    options = {"seed": 1, "progress": False, "output_type": "latent"}
    before = plain("a <dog>", **options).latents
    plain.load_textual_inversion(tmp_path / "word" / "word.safetensors")
    assert error(plain("a <dog>", **options).latents, before) > 1e-4
    for naming in ("peft", "kohya"):
        pipe = ldm.load(lora.model)
        pipe.load_lora(tmp_path / "lora" / f"lora-{naming}.safetensors")
        assert error(pipe("a <dog>", **options).latents, before) > 1e-6


def stop_at_two(step, told):
    if step == 2:
        raise KeyboardInterrupt


# what goes wrong


def poisoned(folder, path):
    """A model whose UNet overflows: finite weights, an infinite loss."""
    pipe = ldm.load(folder / "model")
    with torch.no_grad():
        pipe.unet.conv_out.weight.fill_(1e30)
    ldm.save(pipe, path, layout="diffusers")
    return str(path)


def test_a_loss_that_is_not_finite_stops_with_the_steps_and_leaves_what_is_finite(folder, tmp_path):
    model = poisoned(folder, tmp_path / "model")
    settings = told(folder, tmp_path / "run", model=model, steps=50, most_bad=3, save_every=1)
    with pytest.raises(NumericError, match="steps 1 to 3 had no finite gradient") as caught:
        train(settings)
    assert is_sentence(caught.value) and finite(content(settings.out)) and latest(settings.out).step == 2
    assert [line["loss"] for line in metrics(settings.out)] == [None, None]


def test_a_rate_that_is_too_high_stops_and_the_checkpoints_are_finite(folder, tmp_path):
    """Steps of 1000 each way: the weights stay numbers, and the loss becomes none."""
    settings = told(folder, tmp_path / "run", rate=1e3, steps=200, save_every=1, most_bad=3, clip=0.0)
    with pytest.raises(NumericError, match=r"no finite gradient|is not finite|not finite") as caught:
        train(settings)
    assert is_sentence(caught.value) and finite(content(settings.out))


@pytest.mark.parametrize("times", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_is_one_sentence_and_the_last_checkpoint_stays(folder, tmp_path, times):
    """Wherever in a step it fills up: logging, drawing or saving."""
    settings = told(folder, tmp_path / "begun", steps=2, save_every=1)
    train(settings)
    before = content(settings.out)

    def copied(name):
        shutil.copytree(settings.out, tmp_path / name)
        return replace(settings, steps=3, out=str(tmp_path / name))

    counted = copied("counted")
    with Full().running() as system:
        train(counted)
    assert {"write", "fsync", "mkdir"} <= set(system.calls)
    for at in range(0, len(system.calls), max(1, len(system.calls) // times)):
        again = copied(str(at))
        with Full(at, "always").running(), pytest.raises((InputError, CheckpointError)) as caught:
            train(again)
        assert is_sentence(caught.value) and "No space left on device" in str(caught.value)
        found = latest(again.out)
        assert found.step == 3 or (found.step == 2 and same(content(again.out), before))
        train(again)
        assert latest(again.out).step == 3


class Full(System):
    """A disk on which there is no room from a call on: only what writes fails."""

    def call(self, name):
        return name in ("write", "fsync", "mkdir") and super().call(name)

    def opened(self, *args, **options):
        file = super().opened(*args, **options)
        return Text(self, file.file) if isinstance(file.file, io.TextIOBase) else file


class Text(Opened):
    """A file of text."""

    def write(self, data):
        if self.system.call("write"):
            raise self.system.error()
        return self.file.write(data)


@pytest.mark.parametrize("wrong", ["file", "inside a file", "forbidden"])
def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    folder, tmp_path, wrong, monkeypatch
):
    (tmp_path / "file").write_text("x")
    out = {"file": "file", "inside a file": "file/run", "forbidden": "run"}[wrong]
    monkeypatch.setattr(ldm, "load", never)
    settings = told(folder, tmp_path / out)
    if wrong == "forbidden":
        monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(InputError) as caught:
        train(settings)
    assert is_sentence(caught.value) and str(tmp_path / "file" if wrong != "forbidden" else out) in str(
        caught.value
    )
    assert (tmp_path / "file").read_text() == "x"


def never(*args, **options):
    raise AssertionError("the model was loaded")


def forbidden(*args, **options):
    raise PermissionError(13, "Permission denied")


def test_damaged_pictures_are_passed_over_and_told(folder, tmp_path, caplog):
    write(album(tmp_path / "album", 6), {"03.png": b"no picture"})
    settings = told(folder, tmp_path / "run", steps=3, data={"path": str(tmp_path / "album")})
    with caplog.at_level(logging.WARNING, "ldm"):
        train(settings)
    assert "passed over: 03.png" in caplog.text and len(losses(settings.out)) == 3


def test_a_torn_line_of_metrics_is_taken_out(folder, tmp_path):
    settings = told(folder, tmp_path / "run", steps=2, save_every=1)
    train(settings)
    with (tmp_path / "run" / METRICS).open("a") as file:
        file.write('{"step": 3, "lo')
    train(replace(settings, steps=4))
    assert [line["step"] for line in metrics(settings.out)] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a life is a fork")
def test_a_command_that_is_killed_a_hundred_times_loses_nothing(tmp_path):
    """`ldm train --resume` after each SIGKILL: every step is that of the run which was not, bit for bit."""
    kills = 120
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.lives", str(tmp_path), str(kills), "0"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + (tmp_path / "said").read_text()
    found = json.loads(done.stdout)
    assert found["wrong"] == [] and "passed over" not in (tmp_path / "said").read_text(), found
    assert found["compared"] > kills / 4 and found["others"] == found["steps"], found
    assert found["midway"] > kills / 10, f"too few kills fell into a save: {found}"
    assert found["steps"] - kills <= found["lines"] <= found["steps"]
    kept = [f"step-{found['steps'] - back:08d}" for back in (1, 0)]
    assert found["left"] == ["card.md", "metrics.jsonl", "model", *kept]
