"""The command `ldm` refuses what cannot be done with one sentence and exit code 2, before it draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ldm
from ldm.cli import main
from ldm.pipeline import Pipeline
from tests.reduced import saved


@pytest.fixture
def never(monkeypatch):
    """No call of a pipeline gets as far as its networks."""
    monkeypatch.setattr(Pipeline, "start", lambda *a: pytest.fail("a network ran"))


def refused(capsys, *arguments):
    code = main([str(a) for a in arguments])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("ldm: ") and error.count("\n") == 1
    return error


def test_a_picture_is_drawn_and_more_are_numbered(file, tmp_path, capsys):
    assert main(["sample", "a", "--model", str(file), "-o", str(tmp_path / "a.png"), "--steps", "1"]) == 0
    assert (
        main(["sample", "a", "--model", str(file), "-o", str(tmp_path / "b.png"), "-n", "2", "--steps", "1"])
        == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b-1.png", "b-2.png"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--size", "100000x64"], "8192"),
        (["--size", "8192x8192"], "pixels"),
        (["--guidance", "1e39"], "guidance_scale"),
        (["-n", "0"], "-n"),
        (["-n", "1000000000"], "-n"),
        (["--steps", "0"], "num_inference_steps"),
        (["--spacing", "kerras"], "did you mean 'karras'"),
        (["--clip-skip", "-1"], "clip_skip"),
        (["--clip-skip", "40"], "clip_skip"),
        (["--tile", "9"], "tile"),
        (["--strength", "0.5"], "--strength needs --image"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(file, tmp_path, capsys, never, options, word):
    out = tmp_path / "a.png"
    assert word in refused(capsys, "sample", "a", "--model", file, "-o", out, *options)
    assert not list(tmp_path.iterdir())


def test_words_of_the_call_are_heard(file, tmp_path):
    heard = {
        "plain": ([], {}),
        "spacing": (["--sampler", "euler", "--spacing", "karras"], {"spacing": "karras"}),
        "weights": (["--prompt-weights"], {"prompt_weights": True}),
        "skip": (["--clip-skip", "1"], {"clip_skip": 1}),
        "tile": (["--tile", "32", "--size", "64x64"], {"tile": 32}),
    }
    pictures = {}
    for name, (options, told) in heard.items():
        out = tmp_path / f"{name}.png"
        arguments = ["sample", "a (red:1.5) cat", "--model", file, "-o", out, "--steps", "2", "--seed", "1"]
        assert main([str(a) for a in (*arguments, *options)]) == 0
        said = ldm.parameters(out)
        assert {key: said.get(key) for key in told} == told
        pictures[name] = out.read_bytes()
    assert len(set(pictures.values())) == len(heard)


@pytest.mark.parametrize("out", ["folder.png", "none/a.png", "a.gif", f"{'a' * 300}.png", "file.png/a.png"])
def test_a_place_that_cannot_be_written_is_noticed_before_drawing(file, tmp_path, capsys, never, out):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.png").touch()
    assert "--out" in refused(capsys, "sample", "a", "--model", file, "-o", tmp_path / out)


def test_a_numbered_name_that_is_a_folder_is_noticed(file, tmp_path, capsys, never):
    (tmp_path / "a-2.png").mkdir()
    assert "a-2.png" in refused(capsys, "sample", "a", "--model", file, "-o", tmp_path / "a.png", "-n", 2)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_is_noticed(file, capsys, never):
    assert "/proc/self" in refused(capsys, "sample", "a", "--model", file, "-o", "/proc/self/a.png")


def test_classes_and_nothing_are_prompts_too(tmp_path, capsys):
    for name, prompt, wrong in (("ldm-cin256", "7", "a cat"), ("ldm-celeba256", "", "a cat")):
        model = saved(name, tmp_path / f"{name}.safetensors")
        options = ["--model", model, "-o", tmp_path / f"{name}.png", "--steps", 1, "--size", "32x32"]
        assert main([str(a) for a in ["sample", prompt, *options]]) == 0
        assert (tmp_path / f"{name}.png").exists()
        capsys.readouterr()
        refused(capsys, "sample", wrong, *options)


HOUSES = Path(__file__).parents[1] / "examples/lora/houses.safetensors"


@pytest.fixture
def token(file, tmp_path):
    """A textual inversion of the model in `file`."""
    width = ldm.load(file).text_encoders[0].config.width
    save_file({"emb_params": torch.randn(2, width)}, tmp_path / "zzz.safetensors")
    return tmp_path / "zzz.safetensors"


def test_loras_and_embeddings_are_put_on(token, file, tmp_path, caplog):
    out = tmp_path / "a.png"
    pipe, call = ldm.load(), {"num_inference_steps": 2, "seed": 1, "progress": False}
    pictures = {}
    words = ["sample", "a red house", "-o", out, "--steps", 2, "--seed", 1]
    for weight, said in ((None, []), (0.5, ["--lora", f"{HOUSES}=0.5"]), (1.0, ["--lora", HOUSES])):
        assert main([str(a) for a in (*words, *said)]) == 0
        if weight is not None:
            pipe.load_lora(HOUSES, weight)
        pictures[weight] = Image.open(out).tobytes()
        assert pictures[weight] == pipe("a red house", **call)[0].tobytes()
        pipe.unload_lora()
    assert len(set(pictures.values())) == 3

    assert ldm.parameters(out)["lora"] == {"houses": 1.0}
    with caplog.at_level("WARNING", "ldm"):
        again = pipe.from_png(out, progress=False)[0].tobytes()
        assert again != pictures[1.0] and "drawn with lora {'houses': 1.0}, but None" in caplog.text
        caplog.clear()
        pipe.load_lora(HOUSES)
        assert pipe.from_png(out, progress=False)[0].tobytes() == pictures[1.0] and not caplog.text

    pipe = ldm.load(file)
    pipe.load_textual_inversion(token)
    words = ["sample", "a zzz", "-o", out, "--steps", 2, "--seed", 1, "--model", file]
    assert main([str(a) for a in (*words, "--embedding", token)]) == 0
    with_it = Image.open(out).tobytes()
    assert with_it == pipe("a zzz", **call)[0].tobytes()
    assert main([str(a) for a in words]) == 0
    assert Image.open(out).tobytes() != with_it and "tokens" not in ldm.parameters(out)


def test_a_lora_is_merged_by_convert(tmp_path):
    source, target = Path(ldm.__file__).parent / "bundled", tmp_path / "houses.safetensors"
    pipe = ldm.load()
    assert main(["convert", str(source), str(target), "--lora", f"{HOUSES}=0.5"]) == 0
    pipe.load_lora(HOUSES, 0.5)
    merged, plain = ldm.load(target).unet.state_dict(), ldm.load().unet.state_dict()
    assert all(torch.equal(merged[key], value) for key, value in pipe.unet.state_dict().items())
    assert any(not torch.equal(merged[key], value) for key, value in plain.items())


@pytest.mark.parametrize(
    ("option", "word"),
    [("--lora=none.safetensors", "none.safetensors"), (f"--lora={HOUSES}", "houses"),
     (f"--lora={HOUSES}=nan", "weight"), ("--embedding=none.pt", "none.pt"),
     (f"--embedding={HOUSES}", "houses")],
)  # fmt: skip
def test_what_cannot_be_put_on_is_one_sentence(file, tmp_path, capsys, never, option, word):
    assert word in refused(capsys, "sample", "a", "--model", file, "-o", tmp_path / "a.png", option)
    assert not list(tmp_path.iterdir())


def test_a_weight_of_a_lora_that_is_no_number(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", "a", "--lora", "cats.safetensors=much"])
    assert stopped.value.code == 2 and "FILE=0.8" in capsys.readouterr().err


def test_fast_pictures_are_the_same_but_for_rounding(tmp_path, capsys):
    drawn = {}
    for name, more in {"plain": [], "fast": ["--fast"]}.items():
        words = ["sample", "a red circle", "-o", str(tmp_path / f"{name}.png"), "--steps", "3", "--seed", "1"]
        assert main([*words, *more]) == 0
        drawn[name] = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int)
    assert np.abs(drawn["fast"] - drawn["plain"]).max() <= 1
    assert np.ptp(drawn["plain"]) > 50
    capsys.readouterr()
    error = refused(capsys, "sample", "a", "-o", tmp_path / "b.png", "--fast", "--dtype", "fp16")
    assert "--fast on a CPU is for --dtype fp32, not fp16" in error
