"""`ldm eval`: what is printed and written, and what is refused."""

import argparse
import json
import logging
import subprocess
import sys

import numpy as np
import pytest

import ldm.loading
from ldm.commands import evaluate as command
from ldm.errors import CheckpointError, DeviceError, InputError
from ldm.evaluation import frechet, kernel_distance
from ldm.evaluation.extractors import pixels
from ldm.evaluation.features import from_folder
from ldm.evaluation.shapes import SETS
from ldm.evaluation.shapes.scoring import ASPECTS, make_prompts, paint, score
from tests.reduced import saved
from tests.training.albums import album


def run(*arguments):
    """The command in this process, in a parser as `ldm`'s."""
    top = argparse.ArgumentParser()
    command.add(top.add_subparsers(required=True))
    options = top.parse_args(["eval", *map(str, arguments)])
    options.run(options)


@pytest.fixture(scope="module")
def bundled():
    return ldm.load()


# the judge


def test_the_judge_says_how_often_the_model_is_right(tmp_path, capsys):
    file = tmp_path / "table.json"
    run("shapes", "--number", 4, "--sets", "one", "same", "--steps", 8, "--json", file)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["percent", "right", *ASPECTS]
    told = json.loads(file.read_text())
    assert told | {"percent": None} == {
        "prompts": 4, "seed": 1, "model": "bundled", "steps": 8, "guidance": None, "percent": None,
    }  # fmt: skip
    assert list(told["percent"]) == ["one", "same"] and all(len(row) == 7 for row in told["percent"].values())
    for row, (name, shares) in zip(rows, told["percent"].items(), strict=True):
        assert row.split() == [name, *(f"{share:.1f}" for share in shares.values())]
        assert all(share in (0, 25, 50, 75, 100) for share in shares.values())
    assert told["percent"]["one"]["ground"] == 100  # eight steps paint a ground


def test_a_model_that_does_not_listen_is_wrong(bundled):
    """One step paints next to nothing, and 20 do: the figure is of the model, not of the judge."""
    one, more = (score(bundled, "one", 6, 1, steps=n, progress=False)["right"] for n in (1, 20))
    assert one < 50 < more


def test_picture_i_has_the_seed_plus_i_in_whatever_batch(bundled, monkeypatch):
    prompts = make_prompts("two", 5)
    whole = list(paint(bundled, prompts, 7, steps=2, progress=False))
    monkeypatch.setattr("ldm.evaluation.shapes.scoring.BATCH", 2)
    parts = list(paint(bundled, prompts, 7, steps=2, progress=False))
    alone = bundled(prompts[3].text, seed=10, num_inference_steps=2, output_type="np", progress=False)
    assert len(whole) == len(parts) == 5
    for a, b in zip([*whole, whole[3]], [*parts, alone.images[0]], strict=True):
        assert np.abs(a - b).max() < 1e-4  # sums in another order


def test_models_that_the_judge_cannot_read_are_refused(file, tmp_path, pipe):
    with pytest.raises(InputError, match="reads pictures of 64×64 pixels, and sd1 paints 16×16"):
        score(pipe, "one", 1, 1, progress=False)
    with pytest.raises(InputError, match="reads pictures of 64×64 pixels, and sd1 paints 16×16"):
        run("shapes", "--model", file)
    for name in ("ldm-cin256", "ldm-celeba256", "sd1-inpaint"):
        model = saved(name, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match=f"asks in words alone, and {name} does not paint from them"):
            run("shapes", "--model", model)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (["--number", 0], InputError, "number must be from 1"),
        (["--steps", 0], InputError, "num_inference_steps"),
        (["--guidance", "nan"], InputError, "guidance_scale"),
        (["--seed", -1], InputError, "seed"),
        (["--device", "nowhere"], DeviceError, "nowhere"),
        (["--model", "none.safetensors"], CheckpointError, "none.safetensors"),
    ],
)
def test_what_cannot_be_judged_is_refused(options, error, sentence):
    with pytest.raises(error, match=sentence):
        run("shapes", *options)


def test_other_sets_are_refused(capsys):
    with pytest.raises(SystemExit):
        run("shapes", "--sets", "four")
    error = capsys.readouterr().err
    assert all(name in error for name in SETS)


# distances


@pytest.fixture
def folders(tmp_path):
    return album(tmp_path / "a", 9), album(tmp_path / "b", 12, sizes=[(30, 20), (16, 16)])


def test_distances_of_folders(folders, tmp_path, capsys):
    a, b = (from_folder(folder, pixels, progress=False) for folder in folders)
    run("frechet", *folders, "--json", tmp_path / "frechet.json")
    run("kernel", *folders, "--size", 8, "--subsets", 5, "--seed", 3, "--json", tmp_path / "kernel.json")
    told = {"features": "pixels", "a": str(folders[0]), "b": str(folders[1]), "rows": [9, 12]}
    near, kernel = frechet(a, b), kernel_distance(a, b, subsets=5, size=8, seed=3)
    assert json.loads((tmp_path / "frechet.json").read_text()) == {
        "measure": "frechet", "distance": near, **told,
    }  # fmt: skip
    assert json.loads((tmp_path / "kernel.json").read_text()) == {
        "measure": "kernel", "distance": kernel.mean, "std": kernel.std, "subsets": 5, "size": 8, "seed": 3,
        **told,
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert printed == f"frechet {near:.6g}\nkernel {kernel.mean:.6g} ± {kernel.std:.2g}\n"


def test_distances_of_files(tmp_path, capsys):
    a, b = np.random.default_rng(0).normal(size=(2, 30, 4))
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    run("frechet", tmp_path / "a.npy", tmp_path / "b.npy", "--json", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["features"] is None
    assert capsys.readouterr().out == f"frechet {frechet(a, b):.6g}\n"


def test_a_file_and_a_folder_with_one_s_own_function(folders, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text("def see(images): return images.mean((2, 3))")
    a, b = (from_folder(folder, lambda x: x.mean((2, 3)), progress=False) for folder in folders)
    np.save(tmp_path / "b.npy", b.numpy())
    run("frechet", folders[0], tmp_path / "b.npy", "--features", f"{mine}:see")
    assert capsys.readouterr().out == f"frechet {frechet(a, b):.6g}\n"


def test_few_rows_are_warned_of(folders, tmp_path, caplog):
    run("frechet", *folders)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "9 rows of 192 numbers say little" in caplog.text
    caplog.clear()
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(9, 4)))
    run("frechet", tmp_path / "a.npy", tmp_path / "a.npy")
    assert not caplog.records


def test_pairs_that_cannot_be_measured_are_refused(folders, tmp_path):
    a, b = folders
    np.save(tmp_path / "f.npy", np.ones((9, 4)))
    file = tmp_path / "f.npy"
    for arguments, sentence in [
        (("frechet", file, file, "--features", "pixels"), "--features pixels is for folders"),
        (("frechet", file, a), "a has 4 numbers in a row and b 192; both must be features of one kind"),
        (("frechet", a, tmp_path / "none"), "none is neither a file of features nor a folder of pictures"),
        (("frechet", a, b, "--features", "eyes"), "features cannot be 'eyes'"),
        (("kernel", a, b), "a has 9 of 1000, as --size asks for"),
        (("kernel", a, b, "--size", 1), "size must be from 2"),
        (("frechet", a, b, "--batch", 0), "batch must be from 1"),
    ]:
        with pytest.raises(InputError, match=sentence):
            run(*arguments)


# files that are written


def test_a_place_that_cannot_be_written_is_noticed_first(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(ldm.loading, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "none" / "a.json", tmp_path / "file" / "a.json", "a" * 300 + ".json"):
        for arguments in (["shapes"], ["frechet", *folders]):
            with pytest.raises(InputError, match="--json: "):
                run(*arguments, "--json", place)


def test_figures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    command.write(file, {"a": 1})
    with pytest.raises(TypeError):
        command.write(file, {"a": object()})
    monkeypatch.setattr(
        "os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(CheckpointError, match=r"a\.json cannot be written: No space left on device"):
        command.write(file, {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(file.read_text()) == {"a": 1}


# what is imported


def test_the_library_does_not_import_evaluation_nor_the_command_what_is_slow():
    code = """if True:
        import sys, ldm
        print([name for name in sys.modules if name.startswith("ldm.evaluation")])
        import ldm.commands.evaluate
        slow = {"transformers", "torch_fidelity", "scipy"}
        slow |= {"ldm.evaluation.features", "ldm.evaluation.shapes.judge"}
        print(sorted(slow & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]
