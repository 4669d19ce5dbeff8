"""What is asked wrong of a script of the examples: one sentence, exit code 2, and nothing is written."""

import json
import os
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "shapes"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "lora"))

from door import TakenError, new_folder, told
from recipe import Recipe
from train import recipe_of

from ldm.errors import InputError
from ldm.training.folders import entries

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(
    path.relative_to(EXAMPLES).as_posix()
    for path in EXAMPLES.rglob("*.py")
    if '__name__ == "__main__"' in path.read_text("utf-8")
)
WRONG = [
    ("lora/judge_houses.py", "nope.safetensors", "nope.safetensors does not exist"),
    ("lora/judge_houses.py", "file", "file"),
    ("lora/judge_houses.py", "nope.safetensors --number 0", "--number must be from 1 to .*, not 0"),
    ("lora/judge_houses.py", "nope.safetensors --sheet nope/a.png", "--sheet nope/a.png must be"),
    ("lora/judge_houses.py", "nope.safetensors --number some", "--number: invalid int value: 'some'"),
    ("lora/write_houses.py", "full", "full is there already; give another"),
    ("lora/write_houses.py", "file/new", "file/new cannot be written: Not a directory"),
    ("lora/write_houses.py", "new --number 0", "number must be from 1 to .*, not 0"),
    ("lora/write_houses.py", "new --share nan", "share must be a number from 0 to 1, not nan"),
    ("make_pictures.py", "more", "unrecognized arguments: more"),
    ("shapes/evaluate.py", "--run nope", "nope has no readable run.json"),
    ("shapes/evaluate.py", "--run file", "file has no readable run.json"),
    ("shapes/evaluate.py", "--run full", "full has no readable run.json"),
    ("shapes/evaluate.py", "--run full --model bundled", "give one of them"),
    ("shapes/evaluate.py", "--model nope", "nope does not exist"),
    ("shapes/evaluate.py", "--number 0", "number must be from 1 to .*, not 0"),
    ("shapes/evaluate.py", "--json nope/a.json", "--json: nope/a.json cannot be written"),
    ("shapes/evaluate.py", "--device nope", "device 'nope' cannot be used"),
    ("shapes/export_images.py", "full", "full is there already; give another"),
    ("shapes/export_images.py", "file", "file is there already; give another"),
    ("shapes/export_images.py", "new --number -1", "number must be from 1 to .*, not -1"),
    ("shapes/export_images.py", "new --number 0", "number must be from 1 to .*, not 0"),
    ("shapes/export_images.py", "new --seed -1", "seed must be from 0 to .*, not -1"),
    ("shapes/repaint.py", "--number 0", "--number must be from 1 to .*, not 0"),
    ("shapes/train.py", "--run new --steps 10", "steps must be from 2607 to .*, not 10"),
    ("shapes/train.py", "--run new --steps 0", "steps must be from 2607 to .*, not 0"),
    ("shapes/train.py", "--run new --from bundled --steps 10", "steps must be from 101 to .*, not 10"),
    ("shapes/train.py", "--run new --from nope", "nope does not exist"),
    ("shapes/train.py", "--run new --from bundled --rate nan", "rate of pass 1 must be .*, not nan"),
    ("shapes/train.py", "--run new --from bundled --rate 0", "rate of pass 1 must be .*, not 0"),
    ("shapes/train.py", "--run new --from bundled --rate inf", "rate of pass 1 must be .*, not inf"),
    ("shapes/train.py", "--run new --rate 1e-3", "--rate 0.001 is of the pass with --from"),
    ("shapes/train.py", "--run new --number -1", "--number must be from 0 to .*, not -1"),
    ("shapes/train.py", "--run new --seed -1", "seed must be from 0 to .*, not -1"),
    ("shapes/train.py", "--run new --device nope", "device 'nope' cannot be used"),
    ("shapes/train.py", "--run file", "file is a file; give a folder"),
    ("shapes/train.py", "--run file/new", "file is a file; give a folder"),
    ("shapes/train.py", "--run full", "full has no readable run.json"),
    ("shapes/trials.py", "--number 0", "--number must be from 1 to .*, not 0"),
    ("shapes/trials.py", "upscaling nope", "trial must be one of .*, not 'nope'"),
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the scripts run: there are a file, and a folder with a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    for name in ("file", "full/run.json"):
        (tmp_path / name).write_text("here before", "utf-8")
    return tmp_path


def left(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))


def run(monkeypatch: pytest.MonkeyPatch, script: str, *words: object) -> None:
    """A script, as Python runs it."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_every_script_is_here():
    assert len(SCRIPTS) == 8 and {script for script, _, _ in WRONG} == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_what_it_does_and_does_nothing(script: str, place: Path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, script, "--help")
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith(f"usage: {Path(script).name}")
    assert left(place) == ["file", "full", "full/run.json"]


@pytest.mark.parametrize(("script", "words", "sentence"), WRONG, ids=[" ".join(each[:2]) for each in WRONG])
def test_what_is_wrong_is_one_sentence(
    script: str, words: str, sentence: str, place: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, script, *words.split())
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out
    assert len(said.err.splitlines()) == 1 and said.err.startswith(f"{Path(script).name}: ")
    assert re.search(sentence, said.err)
    assert left(place) == ["file", "full", "full/run.json"]
    assert (place / "file").read_text("utf-8") == "here before"


def test_a_model_of_another_world_begins_no_run(file: Path, place: Path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "shapes/train.py", "--run", "new", "--from", file)
    assert end.value.code == 2 and "give the bundled model's" in capsys.readouterr().err
    assert not (place / "new").exists()


@pytest.mark.parametrize("told", [{}, {"reader": 1}, {"reader": {"steps": 1}}], ids=str)
def test_a_run_without_a_recipe_is_not_evaluated(told: dict[str, object], place: Path, monkeypatch, capsys):
    (place / "full" / "run.json").write_text(json.dumps(told), "utf-8")
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "shapes/evaluate.py", "--run", "full")
    assert end.value.code == 2 and "run.json is no recipe" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["shapes/export_images.py", "lora/write_houses.py"])
def test_after_a_wrong_command_the_right_one_goes(script: str, place: Path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, script, "new", "--number", "-1")
    run(monkeypatch, script, "new", "--number", "3")
    assert len(entries(place / "new")) == 3 and left(place)[:3] == ["file", "full", "full/run.json"]
    assert len(left(place)) == 3 + 5


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt(), InputError("no")])
def test_a_folder_is_whole_or_not_there(error: BaseException, place: Path):
    wanted = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted), new_folder(place / "new") as new:
        (new / "a").write_text("a", "utf-8")
        raise error
    assert left(place) == ["file", "full", "full/run.json"]
    with new_folder(place / "a" / "new") as new:
        (new / "a").write_text("a", "utf-8")
    assert left(place / "a") == ["new", "new/a"]
    with pytest.raises(TakenError), new_folder(place / "a" / "new"):
        pass


def test_a_script_that_is_stopped_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["some/train.py"])
    with pytest.raises(SystemExit) as end, told():
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "train.py: stopped\n"
    with pytest.raises(ZeroDivisionError), told():  # a mistake of ours keeps its traceback
        raise ZeroDivisionError


def test_a_recipe_is_what_was_asked_for():
    given = Namespace(seed=3, source="", steps=None, rate=None)
    assert recipe_of(given) == Recipe(seed=3)
    (only,) = recipe_of(Namespace(seed=3, source="bundled", steps=200, rate=1e-4)).passes
    assert (only.steps, only.rate, only.muon) == (200, 1e-4, True)
    (only,) = recipe_of(Namespace(seed=3, source="bundled", steps=None, rate=None)).passes
    assert (only.steps, only.rate) == (10_000, 1e-3)
    few = recipe_of(Namespace(seed=0, source="", steps=2607, rate=None))
    assert min(stage.steps - stage.warmup for stage in few.passes) == 1


@pytest.mark.parametrize(
    "script", ["lora/write_houses.py", pytest.param("make_pictures.py", marks=pytest.mark.slow)]
)
def test_a_script_runs_by_itself(script: str, place: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, "a", "b"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and not done.stdout
    assert (
        done.stderr == f"{Path(script).name}: {done.stderr.partition(': ')[2]}"
        and "Traceback" not in done.stderr
    )
    assert "unrecognized arguments" in done.stderr and len(done.stderr.splitlines()) == 1
