"""A checkpoint is there whole and verified, or not at all, and a damaged one is never taken."""

import json
import logging
import os
import shutil
from dataclasses import replace

import pytest
import torch

from ldm import CheckpointError, InputError, NumericError
from ldm.checkpoint.header import DTYPES
from ldm.training.checkpoints import latest, load, save
from ldm.training.places import listed

FACTS = {"config": {"lr": 1e-3, "betas": (0.9, 0.99), "size": None}, "data": {"epoch": 3, "index": 17}}


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(3, 4, generator=generator) for name in ("a.weight", "b.weight")}
    return {"weights": weights, "ema": {"a.weight": weights["a.weight"] / 3}}


def begun(folder, *steps, keep=10):
    return [save(folder, step, state(step), FACTS | {"seconds": float(step)}, keep) for step in steps]


def holds(found, step):
    """Whether a checkpoint is that of a step, bit for bit."""
    theirs = state(step)
    return found.step == step and found.tensors.keys() == theirs.keys() and all(
        torch.equal(found.tensors[group][name], tensor)
        for group in theirs
        for name, tensor in theirs[group].items()
    )  # fmt: skip


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    path = save(tmp_path / "new" / "run", 1234, state(1), FACTS)
    assert path == tmp_path / "new" / "run" / "step-00001234"
    assert names(path) == ["ema.safetensors", "state.json", "weights.safetensors"]
    for found in (load(path), latest(path.parent)):
        assert found.step == 1234 and found.facts == FACTS and found.path == path
        assert type(found.facts["config"]["betas"]) is tuple
        assert {"ldm", "torch", "numpy", "python"} == found.versions.keys()
        assert holds(replace(found, step=1), 1)  # the seed


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type_and_shape_comes_back(tmp_path, dtype):
    tensors = {"b": torch.arange(6).reshape(2, 3).to(dtype), "one": torch.ones((), dtype=dtype)}
    tensors |= {"none": torch.zeros(0, 3, dtype=dtype), "turned": tensors["b"].T}
    tensors |= {"with grad": torch.ones(2, requires_grad=True)}
    found = load(save(tmp_path, 0, {"x": tensors, "empty": {}}, {})).tensors
    assert found["empty"] == {} and found["x"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        theirs = found["x"][name]
        assert theirs.dtype == tensor.dtype and theirs.shape == tensor.shape
        assert bytes(theirs.view(-1).view(torch.uint8)) == bytes(
            tensor.detach().reshape(-1).view(torch.uint8)
        )


def test_the_newest_are_kept(tmp_path):
    begun(tmp_path, 1, 2, 3, 10)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003", "step-00000010"]
    begun(tmp_path, 11, keep=2)
    assert names(tmp_path) == ["step-00000010", "step-00000011"]
    begun(tmp_path, 10**8, keep=1)
    assert names(tmp_path) == ["step-100000000"] and holds(latest(tmp_path), 10**8)
    assert [path.name for path in listed(tmp_path)] == ["step-100000000"]


def test_what_holds_other_files_is_neither_counted_nor_removed(tmp_path):
    (first, _) = begun(tmp_path, 1, 2)
    (first / "notes.txt").write_text("the best so far")
    (tmp_path / "step-00000000").mkdir()
    (tmp_path / "step-00000000" / "mine.jpg").write_bytes(b"1")
    (tmp_path / "log.jsonl").write_text("{}")
    begun(tmp_path, 3, 4, keep=1)
    assert names(tmp_path) == ["log.jsonl", "step-00000000", "step-00000001", "step-00000004"]


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
    begun(tmp_path, 1, 2)
    save(tmp_path, 2, state(5), {"again": True})
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert latest(tmp_path).facts == {"again": True}


def test_an_older_step_is_not_saved_among_later_ones(tmp_path):
    begun(tmp_path, 1, 5)
    with pytest.raises(InputError, match=r"step-00000005 is of a later step than 3; save into another"):
        begun(tmp_path, 3)
    (tmp_path / "step-00000005" / "ema.safetensors").write_bytes(b"")
    begun(tmp_path, 3)  # as a run does that fell back
    assert holds(latest(tmp_path), 3)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another_step(path):
    """Another checkpoint's state.json."""
    other = json.loads(path.read_text())
    path.write_text(json.dumps(other | {"step": 7}))


DAMAGE = {
    "cut": ("weights.safetensors", cut),
    "bit": ("weights.safetensors", flip),
    "longer": ("ema.safetensors", lambda path: path.write_bytes(path.read_bytes() + b"\0")),
    "gone": ("ema.safetensors", lambda path: path.unlink()),
    "empty": ("weights.safetensors", lambda path: path.write_bytes(b"")),
    "a folder": ("ema.safetensors", lambda path: (path.unlink(), path.mkdir())),
    "state cut": ("state.json", cut),
    "state bit": ("state.json", flip),
    "state gone": ("state.json", lambda path: path.unlink()),
    "state empty": ("state.json", lambda path: path.write_bytes(b"")),
    "another's state": ("state.json", lambda path: path.write_text('{"step": 2}')),
    "no object": ("state.json", lambda path: path.write_text("[1]")),
    "deep": ("state.json", lambda path: path.write_text("[" * 100_000)),
    "changed step": ("state.json", of_another_step),
    "no text": ("state.json", lambda path: path.write_bytes(b"\xff\xfe\0")),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, caplog, what):
    _, _, newest = begun(tmp_path, 1, 2, 3)
    name, damage = DAMAGE[what]
    damage(newest / name)
    with pytest.raises(CheckpointError, match=r"step-00000003/") as caught:
        load(newest)
    assert name in str(caught.value)
    with caplog.at_level(logging.WARNING, "ldm"):
        assert holds(latest(tmp_path), 2)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step-00000003 is passed over" in caplog.text and name in caplog.text


def test_every_single_bit_of_a_checkpoint_counts(tmp_path):
    (path,) = begun(tmp_path, 1)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for at in range(0, len(whole), 7):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            with pytest.raises(CheckpointError):
                load(path)
            file.write_bytes(whole[:at])
            with pytest.raises(CheckpointError):
                load(path)
        file.write_bytes(whole)
    assert holds(load(path), 1)


def test_another_format_is_told(tmp_path):
    (path,) = begun(tmp_path, 1)
    said = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(said | {"format": "ldm training checkpoint 2"}))
    with pytest.raises(CheckpointError, match="checkpoint 2', not 'ldm training checkpoint 1'; load it with"):
        load(path)


def test_a_copy_loads_under_any_name_but_is_not_the_latest_under_a_wrong_one(tmp_path, caplog):
    (path,) = begun(tmp_path, 1)
    shutil.copytree(path, tmp_path / "best")
    assert holds(load(tmp_path / "best"), 1)
    shutil.copytree(path, tmp_path / "step-00000009")
    assert holds(latest(tmp_path), 1) and "holds step 1" in caplog.text


def test_nothing_whole_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert listed(folder) == []
        with pytest.raises(CheckpointError, match="has no checkpoint; begin the run"):
            latest(folder)
    for path in begun(tmp_path, 1, 2):
        cut(path / "state.json")
    with pytest.raises(CheckpointError, match="each of step-00000002, step-00000001 is damaged"):
        latest(tmp_path)


def test_what_a_killed_run_left_is_cleaned_at_the_next_save(tmp_path):
    begun(tmp_path, 1)
    for name in (".step-00000002.0123abcd.tmp", ".step-00000001.0123abcd.old"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    (tmp_path / ".mine").mkdir()
    assert [path.name for path in listed(tmp_path)] == ["step-00000001"]
    begun(tmp_path, 2)
    assert names(tmp_path) == [".mine", "step-00000001", "step-00000002"]


def test_a_checkpoint_that_was_being_replaced_is_not_lost(tmp_path):
    begun(tmp_path, 1, 2)
    (tmp_path / "step-00000002").rename(tmp_path / ".step-00000002.0123abcd.old")
    assert holds(latest(tmp_path), 2)
    begun(tmp_path, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    assert holds(load(tmp_path / "step-00000002"), 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_not_finite_is_refused_by_name(tmp_path, value, dtype):
    begun(tmp_path, 1)
    bad = state(2)
    bad["ema"]["a.weight"] = bad["ema"]["a.weight"].to(dtype)
    bad["ema"]["a.weight"][1, 2] = value
    with pytest.raises(NumericError, match=r"ema: a\.weight has 1 values that are not finite at step 2"):
        save(tmp_path, 2, bad, FACTS)
    with pytest.raises(NumericError, match=r"facts\.config\.lr is"):
        save(tmp_path, 2, state(2), {"config": {"lr": value}})
    assert names(tmp_path) == ["step-00000001"] and holds(latest(tmp_path), 1)


def test_float8_is_looked_at_too(tmp_path):
    bad = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    with pytest.raises(NumericError, match="x has 1 values"):
        save(tmp_path, 2, {"a": {"x": bad}}, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": -1}, "step must be from 0"),
        ({"step": 1.5}, "step must be a whole number"),
        ({"keep": 0}, "keep must be from 1"),
        ({"tensors": {"../x": {}}}, "a group of tensors is named"),
        ({"tensors": {3: {}}}, "a group of tensors is named"),
        ({"tensors": {"a": {"x": [1.0]}}}, "a: x must be a dense tensor"),
        ({"tensors": {"a": {"x": torch.zeros(2, dtype=torch.complex64)}}}, "a: x must be a dense tensor"),
        ({"tensors": {"a": {"x": torch.zeros(2, device="meta")}}}, "a: x must be a dense tensor"),
        ({"tensors": {"a": {0: torch.zeros(2)}}}, "a: a tensor is named by a text, not 0"),
        ({"facts": {"a": [torch.zeros(2)]}}, r"facts\.a\.0 is a tensor"),
        ({"facts": {"a": {"b": object()}}}, r"facts\.a\.b is a object"),
        ({"folder": 3}, "folder must be a str or a Path"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(tmp_path, change, words):
    usual = {"folder": tmp_path, "step": 2, "tensors": state(2), "facts": FACTS, "keep": 2}
    with pytest.raises(InputError, match=words):
        save(**usual | change)
    assert names(tmp_path) == []


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=r"file"):
            save(folder, 1, state(1), FACTS)
        with pytest.raises(InputError, match="cannot be read"):
            latest(folder)
    assert (tmp_path / "file").read_bytes() == b"1"


def test_foreign_files_in_the_way_are_told(tmp_path):
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "mine.jpg").write_bytes(b"1")
    with pytest.raises(InputError, match="step-00000001 is in the way"):
        begun(tmp_path, 1)
    assert names(tmp_path / "step-00000001") == ["mine.jpg"]


def test_a_system_that_takes_no_files_is_told():
    with pytest.raises(InputError, match="/proc/run cannot be written"):
        save("/proc/run", 1, state(1), FACTS)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path):
    begun(tmp_path / "run", 1)
    (tmp_path / "run").chmod(0o500)
    with pytest.raises(InputError, match="run cannot be written: Permission denied; give a folder"):
        begun(tmp_path / "run", 2)
    assert holds(latest(tmp_path / "run"), 1)
    (tmp_path / "run").chmod(0o700)
