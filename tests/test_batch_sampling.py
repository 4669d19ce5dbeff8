"""`ldm sample --prompts`: many prompts, by one process or several, as often as they are interrupted."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm.cli import main
from ldm.commands import batch
from ldm.commands.lines import read_lines
from ldm.pipeline import Pipeline
from tests.reduced import saved

ROOT = Path(__file__).parents[1]
PROMPTS = ["a red circle", "two large blue rings on a beige background", "a small green star"]
FILES = [f"{i:06d}.png" for i in range(len(PROMPTS))]


@pytest.fixture
def many(tmp_path, capsys):
    """Runs the command on prompts, or the lines of a .jsonl; gives its code, what it printed and said."""

    def run(prompts=PROMPTS, *options, out="out", model=None):
        objects = [line if isinstance(line, str) else json.dumps(line) for line in prompts]
        path = tmp_path / ("p.txt" if all(isinstance(line, str) for line in prompts) else "p.jsonl")
        path.write_text("\n".join(objects), "utf-8")
        words = ["--prompts", path, "--out", tmp_path / out, "--steps", 2, *options]
        words += [] if model is None else ["--model", model]
        capsys.readouterr()
        code = main(["sample", *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def never(monkeypatch):
    """No call of a pipeline gets as far as its networks."""
    monkeypatch.setattr(Pipeline, "start", lambda *a: pytest.fail("a network ran"))


@pytest.fixture
def one_thread():
    """Torch computes as it does in a process that torchrun starts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def state(folder):
    """What tells whether files were written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.png")}


def pixels(picture):
    return np.asarray(picture).astype(int)


def sentence(found):
    code, out, error = found
    assert (code, out) == (2, "") and error.startswith("ldm: ") and error.count("\n") == 1, found
    return error


def test_every_line_becomes_files_that_say_how(many, tmp_path):
    code, out, _ = many([PROMPTS[0], "", "  ", PROMPTS[1]], "-n", "2", "--seed", "5")
    assert code == 0 and "4 images, 4 of them drawn now" in out
    folder, pipe = tmp_path / "out", ldm.load()
    names = [f"{i:06d}.png" for i in range(4)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "manifest.jsonl"]
    listed = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    for i, (name, row) in enumerate(zip(names, listed, strict=True)):
        said, drawn = ldm.parameters(folder / name), pixels(Image.open(folder / name))
        assert (said["prompt"], said["seed"]) == (PROMPTS[i // 2], 5 + i)
        assert row == {"file": name} | said
        alone = pipe(PROMPTS[i // 2], seed=5 + i, num_inference_steps=2, progress=False)[0]
        again = pipe.from_png(folder / name, progress=False)[0]
        assert said == alone.parameters | {"model": said["model"]}
        assert np.array_equal(drawn, pixels(alone)) and np.array_equal(drawn, pixels(again))


def test_a_line_can_say_more_than_a_prompt(many, file, tmp_path):
    lines = [
        {"prompt": "a", "negative": "b", "seed": 40, "name": "my cat"},
        {"prompt": "", "width": 32, "height": 24, "steps": 1, "guidance": 2.5},
        {"prompt": "c", "seed": None, "name": "été.2"},
    ]
    code, _, error = many(lines, "-n", "2", "--negative", "", "--batch-size", "3", model=file)
    assert code == 0, error
    folder, pipe = tmp_path / "out", ldm.load(file)
    calls = {
        "my cat-1": {"prompt": "a", "negative_prompt": "b", "seed": 40},
        "my cat-2": {"prompt": "a", "negative_prompt": "b", "seed": 41},
        "000002": {"prompt": "", "seed": 2, "width": 32, "height": 24, "num_inference_steps": 1},
        "000003": {"prompt": "", "seed": 3, "width": 32, "height": 24, "num_inference_steps": 1},
        "été.2-1": {"prompt": "c", "seed": 4},
        "été.2-2": {"prompt": "c", "seed": 5},
    }
    assert {path.stem for path in folder.glob("*.png")} == set(calls)
    for name, call in calls.items():
        guidance = {"guidance_scale": 2.5} if call["prompt"] == "" else {}
        call = {"negative_prompt": "", "num_inference_steps": 2} | guidance | call
        alone, path = pipe(**call, progress=False)[0], folder / f"{name}.png"
        said = ldm.parameters(path)
        assert said == alone.parameters | {"model": said["model"]}
        assert np.abs(pixels(alone) - pixels(Image.open(path))).max() <= 1  # rounding, as any batch


def test_what_is_drawn_together_makes_no_difference(many, file, tmp_path):
    prompts = [{"prompt": p, "width": 16 + 16 * (i % 2)} for i, p in enumerate("abcde")]
    for count in (1, 2, 5):
        assert many(prompts, "--batch-size", str(count), out=f"by{count}", model=file)[0] == 0
    for path in (tmp_path / "by1").glob("*.png"):
        for other in ("by2", "by5"):
            assert ldm.parameters(tmp_path / other / path.name) == ldm.parameters(path)
            a, b = (pixels(Image.open(p)) for p in (path, tmp_path / other / path.name))
            assert np.abs(a - b).max() <= 1


def torn(data):
    """What can be left of a PNG file."""
    text = data.index(b"iTXt")
    return {
        "gone": None, "empty": b"", "begun": data[:3], "head": data[:33], "cut": data[: len(data) // 2],
        "no end": data[:-12], "end cut": data[:-1], "zeros": bytes(len(data)),
        "flipped": data[: text + 40] + b"?" + data[text + 41 :],
        "hole": data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    }  # fmt: skip


def test_what_is_there_and_whole_is_not_drawn_again(many, file, tmp_path):
    folder = tmp_path / "out"
    assert many(model=file)[0] == 0
    first = {name: (folder / name).read_bytes() for name in FILES}
    for left in torn(first[FILES[1]]).values():
        (folder / FILES[1]).unlink()
        if left is not None:
            (folder / FILES[1]).write_bytes(left)
        before = state(folder)
        code, out, _ = many(model=file)
        assert code == 0 and "3 images, 1 of them drawn now" in out
        after = state(folder)
        assert {name for name in FILES if after[name] != before.get(name)} == {FILES[1]}
        assert {name: (folder / name).read_bytes() for name in FILES} == first
    before = state(folder)
    assert "0 of them drawn now" in many(model=file)[1] and state(folder) == before


def test_a_longer_file_goes_on(many, file, tmp_path):
    assert many(model=file)[0] == 0
    before = state(tmp_path / "out")
    assert "4 images, 1 of them" in many([*PROMPTS, "one more"], model=file)[1]
    assert before.items() <= state(tmp_path / "out").items()


def test_what_was_interrupted_goes_on(many, file, tmp_path, monkeypatch):
    def stop(image, path):
        if path.name == FILES[2]:
            (tmp_path / "out" / f".{path.stem}.0123abcd.tmp.png").write_bytes(b"half")
            raise KeyboardInterrupt
        write(image, path)

    write = batch.write
    monkeypatch.setattr(batch, "write", stop)
    code, _, error = many(model=file)
    assert code == 130 and error.endswith("ldm: stopped\n")
    before = state(tmp_path / "out")
    assert list(before) and not (tmp_path / "out" / "manifest.jsonl").exists()
    monkeypatch.undo()
    (tmp_path / "out" / ".notes.0123abcd.tmp.png").write_bytes(b"another's")
    assert "1 of them drawn now" in many(model=file)[1]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*FILES, "manifest.jsonl", ".notes.0123abcd.tmp.png"}


@pytest.mark.parametrize(
    ("prompts", "options", "told"),
    [
        (PROMPTS, ["--steps", "3"], "num_inference_steps 2, not num_inference_steps 3"),
        (PROMPTS, ["--seed", "1"], "seed 2, not seed 3"),
        (PROMPTS, ["--guidance", "2"], "guidance_scale"),
        (PROMPTS, ["--sampler", "euler"], "sampler"),
        (PROMPTS, ["--spacing", "karras"], "no spacing, not spacing 'karras'"),
        (PROMPTS, ["--size", "32x16"], "width 16, not width 32"),
        (PROMPTS, ["--negative", "x"], "negative_prompt None, not negative_prompt 'x'"),
        (PROMPTS, ["--dtype", "bf16"], "model"),
        ([*PROMPTS[:2], "a cat"], [], "prompt 'a small green star', not prompt 'a cat'"),
    ],
)
def test_what_was_drawn_otherwise_is_kept_unless_it_may_go(
    many, file, tmp_path, monkeypatch, prompts, options, told
):
    assert many(model=file)[0] == 0
    for name in FILES[:2]:
        (tmp_path / "out" / name).unlink()
    before = state(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "start", lambda *a: pytest.fail("it drew before it had looked at all files"))
        said = sentence(many(prompts, *options, model=file))
    assert f"out/{FILES[2]} was drawn with" in said and told in said and "--overwrite" in said
    assert state(tmp_path / "out") == before
    assert many(prompts, *options, "--overwrite", model=file)[0] == 0
    assert many(prompts, *options, model=file)[0] == 0


def test_another_model_of_the_family_is_another_model(many, file, tmp_path):
    assert many(model=file)[0] == 0
    other = ldm.load(file, copy=True)
    with torch.no_grad():
        other.unet.conv_out.weight.mul_(1.01)
    ldm.save(other, tmp_path / "other.safetensors")
    assert "model" in sentence(many(model=tmp_path / "other.safetensors"))


def test_another_picture_to_start_from_is_another_picture(many, file, tmp_path):
    for i, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (16, 16), (0, 0, 250 * i)).save(tmp_path / name)
    assert many(PROMPTS, "--image", tmp_path / "a.png", "--strength", "0.6", model=file)[0] == 0
    picture = Image.open(tmp_path / "a.png")
    drawn = tmp_path / "out" / FILES[1]
    assert ldm.parameters(drawn)["strength"] == 0.6
    again = ldm.load(file).from_png(drawn, image=picture, progress=False)[0]
    assert np.array_equal(pixels(again), pixels(Image.open(drawn)))
    assert "0 of them" in many(PROMPTS, "--image", tmp_path / "a.png", "--strength", "0.6", model=file)[1]
    other = many(PROMPTS, "--image", tmp_path / "b.png", "--strength", "0.6", model=file)
    assert "pictures" in sentence(other)


@pytest.mark.parametrize("kind", ["text", "jpeg", "plain", "folder"])
def test_what_is_another_s_is_kept(many, file, tmp_path, never, kind):
    path = tmp_path / "out" / FILES[1]
    path.parent.mkdir()
    if kind == "text":
        path.write_text("my notes")
    elif kind == "folder":
        path.mkdir()
    else:
        Image.new("RGB", (16, 16)).save(path, "JPEG" if kind == "jpeg" else "PNG")
    assert f"out/{FILES[1]}" in sentence(many(model=file))
    assert [child.name for child in path.parent.iterdir()] == [path.name]


HOSTILE = {
    "empty": ("p.txt", b"", "no prompts"),
    "blank": ("p.txt", b"\n \n\t\r\n", "no prompts"),
    "latin-1": ("p.txt", b"a\nb\ncaf\xe9\n", "p.txt, line 3"),
    "utf-16": ("p.txt", "a cat".encode("utf-16"), "p.txt, line 1"),
    "other end": ("p.csv", b"a", ".jsonl"),
    "no end": ("p", b"a", ".txt"),
    "no object": ("p.jsonl", b'{"prompt": "a"}\n\n["b"]', "line 3: it is ['b']"),
    "text": ("p.jsonl", b"a cat", "line 1"),
    "open": ("p.jsonl", b'{"prompt": "a"', "line 1"),
    "two": ("p.jsonl", b'{"prompt": "a"} {"prompt": "b"}', "Extra data"),
    "deep": ("p.jsonl", b"[" * 100_000, "line 1"),
    "no prompt": ("p.jsonl", b'{"seed": 1}', 'has no "prompt"'),
    "null": ("p.jsonl", b'{"prompt": null}', "prompt must be"),
    "list": ("p.jsonl", b'{"prompt": ["a", "b"]}', "prompt must be a text"),
    "number": ("p.jsonl", b'{"prompt": 1.5}', "prompt must be a text"),
    "class": ("p.jsonl", b'{"prompt": 7}', "prompt must be a str"),
    "switch": ("p.jsonl", b'{"prompt": true}', "prompt must be a text"),
    "negative": ("p.jsonl", b'{"prompt": "a", "negative": {}}', "negative must be a text"),
    "surrogate": ("p.jsonl", b'{"prompt": "\\ud800"}', "Unicode"),
    "unknown": ("p.jsonl", b'{"prompt": "a", "sede": 1}', "did you mean 'seed'"),
    "empty key": ("p.jsonl", b'{"prompt": "a", "": 1}', "unknown key ''"),
    "twice": ("p.jsonl", b'{"prompt": "a", "seed": 1, "seed": 1}', "'seed' twice"),
    "seed": ("p.jsonl", b'{"prompt": "a", "seed": -1}', "seed must be from 0"),
    "seed text": ("p.jsonl", b'{"prompt": "a", "seed": "1"}', "seed must be a whole number"),
    "seed huge": ("p.jsonl", b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}", "line 1"),
    "seed end": ("p.jsonl", b'{"prompt": "a", "seed": 9223372036854775807}', "seed must be from 0"),
    "width": ("p.jsonl", b'{"prompt": "a", "width": 17}', "width 17 is not a multiple"),
    "height": ("p.jsonl", b'{"prompt": "a", "height": 0}', "height must be from 1"),
    "pixels": ("p.jsonl", b'{"prompt": "a", "width": 8192, "height": 8192}', "pixels"),
    "steps": ("p.jsonl", b'{"prompt": "a", "steps": 100000}', "num_inference_steps"),
    "guidance": ("p.jsonl", b'{"prompt": "a", "guidance": NaN}', "guidance_scale"),
    "guidance huge": ("p.jsonl", b'{"prompt": "a", "guidance": 1e999}', "guidance_scale"),
    "guidance text": ("p.jsonl", b'{"prompt": "a", "guidance": "7"}', "guidance must be a number"),
    "weight": ("p.txt", b"a\na (cat:1e9) (dog:300)", "line 2"),
    "name": ("p.jsonl", b'{"prompt": "a", "name": 3}', "name 3 must be"),
    "same name": ("p.jsonl", b'{"prompt": "a", "name": "b"}\n{"prompt": "c", "name": "B"}', "B-1.png is"),
    **{
        f"name {name!r}": ("p.jsonl", json.dumps({"prompt": "a", "name": name}).encode(), "name ")
        for name in (
            "", ".", "..", "../up", "/etc/passwd", "a/b", "a\\b", ".hidden", "-o", "a\n", "a\0b", "cat.png",
            "cat.PNG", "a ", "é" * 101, "\ud800", "c:d",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_sentence(file, tmp_path, capsys, never, case):
    name, data, word = HOSTILE[case]
    (tmp_path / name).write_bytes(data)
    options = ["-n", 2, "--prompt-weights", "--steps", 2, "--model", file, "--out", tmp_path / "out"]
    code = main(["sample", *map(str, ["--prompts", tmp_path / name, *options])])
    said = sentence((code, *capsys.readouterr()))
    assert word in said and name in said and len(said) < 1000
    assert not list(tmp_path.glob("out/*"))


def test_number_and_name_of_one_file_are_told(many, file, never):
    lines = [{"prompt": "a"}, {"prompt": "b", "name": "000000"}]
    assert "p.jsonl, line 2: 000000.png is the file of" in sentence(many(lines, model=file))


def test_files_of_prompts_are_read_as_they_stand(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes('\ufeff a cat \r\n\r\nein Käfer\u2028x\n{"prompt": 1}'.encode())
    lines = read_lines(path)
    assert [line.told["prompt"] for line in lines] == [" a cat ", "ein Käfer\u2028x", '{"prompt": 1}']
    assert [line.place.rpartition(" ")[2] for line in lines] == ["1", "3", "4"]


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["a cat", "--prompts", "p.txt", "--out", "o"], "give one of them"),
        ([], "--prompts FILE"),
        (["a cat", "--overwrite"], "--overwrite needs --prompts"),
        (["a cat", "--batch-size", "2"], "--batch-size needs --prompts"),
        (["--prompts", "p.txt"], "needs --out"),
        (["--prompts", "p.txt", "--out", "p.txt"], "is a file"),
        (["--prompts", "p.txt", "--out", "o.png"], "is a file"),
        (["--prompts", "p.txt", "--out", "p.txt/o"], "cannot be written"),
        (["--prompts", "none.txt", "--out", "o"], "none.txt cannot be read"),
        (["--prompts", ".txt", "--out", "o"], "must end in .txt"),
        (["--prompts", "folder.txt", "--out", "o"], "is no file"),
        (["--prompts", "manifest.jsonl", "--out", "."], "another name"),
        (["--prompts", "p.txt", "--out", "o", "-n", "0"], "-n must"),
        (["--prompts", "p.txt", "--out", "o", "--batch-size", "0"], "--batch-size must"),
        (["--prompts", "p.txt", "--out", "o", "--seed", "-1"], "--seed must"),
        (["--prompts", "p.txt", "--out", "o", "--mask", "m.png"], "--mask needs --image"),
        (["--prompts", "p.txt", "--out", "o", "--device", "tpu"], "device"),
    ],
)
def test_words_that_do_not_go_together(tmp_path, monkeypatch, capsys, never, words, word):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a cat")
    Path("manifest.jsonl").write_text('{"prompt": "a"}')
    Path("folder.txt").mkdir()
    code = main(["sample", *words])
    assert word in sentence((code, *capsys.readouterr()))


@pytest.mark.parametrize("name", ["ldm-cin256", "ldm-celeba256", "sd-x4-upscaler"])
def test_other_families_hear_and_see_what_they_do(many, tmp_path, name):
    model = saved(name, tmp_path / f"{name}.safetensors")
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "small.png")
    prompts, options = {
        "ldm-cin256": ([{"prompt": "7"}, {"prompt": 8}], ["--size", "32x32"]),
        "ldm-celeba256": ([{"prompt": ""}, {"prompt": None}], ["--size", "32x32"]),
        "sd-x4-upscaler": (["a", "b"], ["--image", tmp_path / "small.png"]),
    }[name]
    options = ["--batch-size", "2", *options]
    code, _, error = many(prompts, *options, model=model)
    assert code == 0, error
    assert "2 images, 0 of them" in many(prompts, *options, model=model)[1]
    said = [ldm.parameters(tmp_path / "out" / file)["prompt"] for file in FILES[:2]]
    assert said == {"ldm-cin256": [7, 8], "ldm-celeba256": [None, None]}.get(name, ["a", "b"])
    if name == "ldm-cin256":
        assert "line 1: ldm-cin256 draws classes" in sentence(many(["a cat"], *options, model=model))


def torchrun(*words, script=None):
    """Two processes; gives the exit code, what they printed and said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         *([str(script)] if script else ["-m", "ldm"]), *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            out, error = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends the two, which a kill would leave alone
            raise
    return process.returncode, out, error


@pytest.mark.slow
def test_two_processes_draw_what_one_does(many, file, tmp_path, one_thread):
    prompts = [*PROMPTS, "a", "b"]
    assert many(prompts, "--batch-size", "2", model=file)[0] == 0
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / FILES[2]).write_bytes((tmp_path / "out" / FILES[2]).read_bytes()[:99])
    words = ["sample", "--prompts", tmp_path / "p.txt", "--steps", 2, "--batch-size", 2, "--model", file]
    code, out, error = torchrun(*words, "--out", tmp_path / "two")
    assert code == 0, error
    assert out.count("\n") == 1 and "5 images, 5 of them drawn now" in out
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("out", "two"))
    assert len(one) == 6 and one == two


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["os.kill(os.getpid(), 9)", "raise InputError('wrong')"])
def test_where_one_process_fails_all_end(many, file, tmp_path, one_thread, failure):
    many(model=file)
    script = tmp_path / "failing.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\nfrom ldm.cli import main\nfrom ldm.commands import batch\n"
        "from ldm.errors import InputError\n\n"
        f"def fail(image, path):\n    Path({str(tmp_path / 'failed')!r}).touch()\n    {failure}\n\n"
        "if os.environ['RANK'] == '1':\n    batch.write = fail\nsys.exit(main())\n"
    )
    words = ["sample", "--prompts", tmp_path / "p.txt", "--steps", 2, "--model", file]
    code, _, error = torchrun(*words, "--out", tmp_path / "two", script=script)
    assert code and time.time() - (tmp_path / "failed").stat().st_mtime < 30, error
    assert not (tmp_path / "two" / "manifest.jsonl").exists()
    code, out, error = torchrun(*words, "--out", tmp_path / "two")
    assert code == 0 and "3 images, " in out, error  # the other may have been ended before it drew one
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("out", "two"))
    assert one == two


def test_pictures_drawn_fast_are_of_the_same_model(many):
    assert "3 of them drawn now" in many()[1]
    assert "0 of them drawn now" in many(PROMPTS, "--fast")[1]
    assert "3 of them drawn now" in many(PROMPTS, "--fast", out="fast")[1]
    assert "0 of them drawn now" in many(out="fast")[1]
