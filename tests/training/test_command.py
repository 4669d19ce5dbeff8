"""`ldm train` on the command line: what is shown reads back, what is wrong is one sentence."""

import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

import ldm
from ldm.cli import main
from ldm.commands.train import KINDS, kind_of, shown
from ldm.errors import InputError
from ldm.training import session
from ldm.training.config import read
from ldm.training.places import listed
from ldm.training.settings import Data, DiffusionSettings, LoraSettings, Sheet, check
from tests.training.runs import is_sentence, losses, place, told, words

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return place(tmp_path_factory.mktemp("command"))


def never(*args, **options):
    raise AssertionError("the model was loaded")


# --show


ODD = DiffusionSettings(
    out="a folder/ü 猫", rate=1e-05, fresh=("unet", "vae"), zero_snr=True, ema=0.999999, betas=(0.5, 0.9),
    data=Data(path=r"C:\photos\new", flip=0.5, size=64), seed=2**40,
    sheet=Sheet(prompts=('a "red" cat', "it's\na\ttab \\n", "", "x = [1]", "\x7f\x01 😀", "true", "#")),
)  # fmt: skip


@pytest.mark.parametrize(
    "settings", [DiffusionSettings(), ODD, LoraSettings(targets=r"(q|k)\.out$", alpha=4.0)]
)
def test_what_is_shown_is_toml_that_reads_back(tmp_path, settings):
    path = tmp_path / "run.toml"
    path.write_text(shown(settings), "utf-8")
    assert read(type(settings), path) == settings
    assert read(type(settings), None, words(settings)) == settings
    assert read(type(settings), path, ["seed=9"]) == replace(settings, seed=9) != settings


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_all_its_settings(kind, capsys):
    assert main(["train", kind, "--show"]) == 0
    settings, _ = kind_of(kind)
    lines = capsys.readouterr().out.splitlines()
    leaves = [
        f"{field.name}.{inner.name}" if is_dataclass(value) else field.name
        for field in fields(settings)
        for value in [getattr(settings(), field.name)]
        for inner in (fields(value) if is_dataclass(value) else [field])
    ]
    assert [line.split(" = ")[0] for line in lines] == leaves


def test_words_win_over_the_file_and_options_may_stand_between(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text('out = "a"\nrate = 1\n[data]\npath = "photos"\nsize = 32\n')
    assert (
        main(["train", "diffusion", "out=b", "--config", str(path), "data.size=64", "--show", "steps=3"]) == 0
    )
    shown_ = capsys.readouterr().out
    for line in ('out = "b"', "rate = 1.0", 'data.path = "photos"', "data.size = 64", "steps = 3"):
        assert f"{line}\n" in shown_


# what is wrong, before any model is loaded


WRONG = {
    "no out": (["data.path=ALBUM"], "out is missing; give it in the config, or as out=PATH"),
    "no data": (["out=OUT"], "data.path is missing"),
    "unknown": (["out=OUT", "stepz=3"], "unknown key stepz; did you mean 'steps'?"),
    "unknown inside": (["data.pth=ALBUM"], "unknown key data.pth; did you mean 'path'?"),
    "no table": (["data=ALBUM"], "data must be a table, not"),
    "no pair": (["steps"], "'steps' must look like key=value"),
    "a text": (["steps=many"], "steps must be a whole number, not 'many'"),
    "a part": (["steps=1.5"], "steps must be a whole number, not 1.5"),
    "a list": (["networks=unet"], "networks must be a list, not 'unet'"),
    "a switch": (["overfit=1"], "overfit must be true or false, not 1"),
    "no folder": (["out=OUT", "data.path=nowhere"], "data.path: nowhere is not a folder"),
    "steps": (["steps=0"], "steps must be from 1"),
    "batch": (["batch=-4"], "batch must be from 1"),
    "parts": (["batch=4", "accumulate=3"], "batch 4 is not a multiple of accumulate 3"),
    "rate": (["rate=1e30"], "rate must be a number from 0 to 1000"),
    "nan": (["rate=nan"], "rate must be a number from 0 to 1000"),
    "schedule": (["schedule=cosin"], "did you mean 'cosine'?"),
    "warmup": (["warmup=2000"], "warmup must be from 0 to 1000"),
    "betas": (["betas=[0.9]"], "betas must be two numbers, not [0.9]"),
    "beta": (["betas=[0.9, 1.0]"], "betas must be a number from 0 to"),
    "ema": (["ema=1.5"], "ema must be a number from 0 to 1"),
    "seed": (["seed=-1"], "seed must be from 0"),
    "precision": (["precision=fp16"], "precision must be one of fp32, bf16"),
    "spread": (["spread=zero"], "spread must be one of ddp, fsdp"),
    "saved": (["saved=int8"], "saved must be one of fp32, fp16, bf16"),
    "keep": (["keep=0"], "keep must be from 1"),
    "crop": (["data.crop=left"], "data.crop must be one of center, random"),
    "flip": (["data.flip=2"], "data.flip must be a number from 0 to 1"),
    "workers": (["data.workers=-1"], "data.workers must be from 0"),
    "sheet steps": (["sheet.steps=-5"], "sheet.steps must be from 0"),
    "sheet guidance": (["sheet.guidance=-2"], "sheet.guidance must be a number from -1"),
    "device": (["device=tpu"], "try device="),
    "weighting": (["weighting=snr"], "weighting must be one of uniform, min_snr"),
    "prediction": (["prediction=score"], "prediction must be one of eps, v, x0"),
    "times": (["times=cubic"], "times must be one of uniform, stratified, logit_normal"),
    "drop": (["drop=2"], "drop must be a number from 0 to 1"),
    "chunks": (["chunks=0"], "chunks must be from 1"),
    "nothing": (["networks=[]"], "networks is empty"),
}


def said(folder, tmp_path, given):
    """Words, with what is needed besides; none for what a case is about."""
    given = [
        word.replace("OUT", str(tmp_path / "run")).replace("ALBUM", str(folder / "album")) for word in given
    ]
    keys = {word.partition("=")[0] for word in given}
    needed = {
        "device": "cpu",
        "out": tmp_path / "run",
        "data.path": folder / "album",
        "model": folder / "model",
    }
    alone = len(given) < 3 and any(word.startswith(("out=", "data.p", "data=")) for word in given)
    return given + [f"{k}={v}" for k, v in needed.items() if k not in keys and not alone]


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_before_the_model_is_loaded(
    folder, tmp_path, case, monkeypatch, capsys
):
    monkeypatch.setattr(ldm, "load", never)
    given, words_ = WRONG[case]
    assert main(["train", "diffusion", *said(folder, tmp_path, given)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ldm: ") and err.count("\n") == 1 and is_sentence(err)
    assert words_ in err, err
    assert not list(tmp_path.rglob("step-*")) and not (tmp_path / "run" / "metrics.jsonl").exists()


TOML = {
    "not there": (None, "cannot be read: No such file or directory; give a TOML file"),
    "no toml": (b"steps = = 3", "is no TOML: "),
    "no text": (b"\xff\xfe", "is no TOML: "),
    "unknown": (b"[sheets]\nevery = 3", "run.toml: unknown key sheets; did you mean 'sheet'?"),
    "type": (b"rate = '1e-4'", "run.toml: rate must be a number, not '1e-4'"),
    "deep": (b"[data.path]\nx = 1", "run.toml: data.path must be a text, not {'x': 1}"),
}


@pytest.mark.parametrize("case", TOML)
def test_a_file_that_is_wrong_is_named(tmp_path, case, capsys):
    data, words_ = TOML[case]
    path = tmp_path / "run.toml"
    if data is not None:
        path.write_bytes(data)
    assert main(["train", "lora", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert words_ in err and is_sentence(err)


ARGUMENTS = [["train"], ["train", "gan"], ["train", "lora", "--steps", "3"]]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_arguments_that_are_wrong_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1


MODEL = {
    "model": (["model=nowhere.safetensors"], "nowhere.safetensors"),
    "network": (["networks=['unt']"], "networks has 'unt'; did you mean 'unet'?"),
    "vae": (["networks=['vae']"], "networks has 'vae'; there are unet, text_encoder"),
    "fresh": (["fresh=['text']"], "fresh has 'text', which sd1 has not"),
    "eps": (["zero_snr=true"], "give prediction=v with zero_snr"),
    "size": (["data.size=15"], "data.size 15 is not a multiple of 2"),
    "fsdp": (["spread=fsdp"], "spread=fsdp needs several processes; start with torchrun"),
    "shards": (["data.path=nowhere-{000..003}.tar"], "nowhere-000.tar"),
    "sheet": (["sheet.every=1", "sheet.data=nowhere"], "nowhere is not a folder"),
}


@pytest.mark.parametrize("case", MODEL)
def test_what_only_the_model_tells_is_one_sentence_too(folder, tmp_path, case, capsys):
    given, words_ = MODEL[case]
    more = [] if case == "shards" else [f"data.path={folder / 'album'}"]
    more += [] if case == "model" else [f"model={folder / 'model'}"]
    assert (
        main(["train", "diffusion", f"out={tmp_path / 'run'}", *more, "device=cpu", "steps=1", *given]) == 2
    )
    err = capsys.readouterr().err
    assert words_ in err and is_sentence(err) and err.count("\n") == 1, err
    assert listed(tmp_path / "run") == []


def test_of_models_that_are_not_trained_none_is_made(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "from_nothing", never)
    for name in ("sd1-inpaint", "sd-x4-upscaler"):
        words_ = ["model=" + name, f"out={tmp_path / 'run'}", f"data.path={folder / 'album'}"]
        assert main(["train", "diffusion", *words_]) == 2
        assert "train a text to image model" in capsys.readouterr().err


# a run


def test_a_run_its_end_and_its_resumption(folder, tmp_path, capsys):
    """`--resume` begins in an empty folder, a run that is there is not trained over, and with it goes on."""
    out = tmp_path / "run"
    given = words(told(folder, out, steps=2, ema=0.0))
    assert main(["train", "diffusion", "--resume", *given]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(out / "model"), str(out / "card.md")] and len(losses(out)) == 2
    assert main(["train", "diffusion", *given]) == 2
    assert "has a run, step-00000002; add --resume to go on, or give another out" in capsys.readouterr().err
    assert main(["train", "diffusion", *given, "--resume", "rate=0.5"]) == 2
    assert "rate: was 0.001, is 0.5" in capsys.readouterr().err
    assert main(["train", "diffusion", *given, "--resume", "steps=3"]) == 0
    assert len(losses(out)) == 3 and listed(out)[0].name == "step-00000003"


def test_a_stop_is_told_and_gone_on_from(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    given = words(told(folder, out, steps=3, save_every=1, ema=0.0))

    def stop(path, step, told):
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ldm.training.loop.log", stop)
        assert main(["train", "diffusion", *given]) == 130
    assert (
        capsys.readouterr().err.splitlines()[-1] == "ldm: stopped" and listed(out)[0].name == "step-00000001"
    )
    assert main(["train", "diffusion", *given, "--resume"]) == 0
    assert [line["step"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())] == [
        2,
        3,
    ]


def test_settings_that_are_whole_pass(folder, tmp_path):
    check(told(folder, tmp_path / "run"))
    with pytest.raises(InputError):
        check(replace(told(folder, tmp_path / "run"), out=""))


@pytest.mark.slow
def test_the_command_shows_a_bar_and_errors_quickly(folder, tmp_path):
    """As a program: a wrong key ends within the time that torch takes to import, a run shows its loss."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "ldm", "train", "diffusion", *arguments], cwd=ROOT, env=environment,
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    done = call("stepz=3")
    assert done.returncode == 2 and done.stdout == "" and is_sentence(done.stderr)
    done = call(*words(told(folder, tmp_path / "run", steps=2)))
    assert done.returncode == 0, done.stderr
    assert "loss=" in done.stderr and "images/s" in done.stderr and done.stdout.endswith("card.md\n")
