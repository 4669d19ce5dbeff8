"""Several processes are one run: the same losses, whichever way the model is spread, and one end for all."""

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
from ldm.training.checkpoints import latest, load
from ldm.training.places import listed
from ldm.training.sealed import is_whole
from tests.tiny import error, read_all
from tests.training.pairs import BOTH, LITTLE, STEPS, WAYS
from tests.training.runs import content, is_sentence, losses, metrics, place, told, words

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    "OMP_NUM_THREADS": "1",
}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is a fork")
slow = pytest.mark.slow
CLOSE = 1e-4  # of the losses; sums in another order differ by about 1e-7, which a step of Adam may enlarge


def group(folder, name):
    """What came of a group of runs, and where they are."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.pairs", str(folder), name], env=ENVIRONMENT, cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return group(tmp_path_factory.mktemp("few"), "few")


def check_alike(folder, found, names):
    """All of each run ended well, with the losses, weights, averages and sheets of one process.

    Gradients that are 0 but for rounding become whole steps by Adam, so that all weights are compared as one;
    they move by about 2e-3 of their length.
    """
    one = found["one"]
    assert len(one["losses"]) == STEPS and one["steps"] == [4, 3, 2, 1]
    reference, sheet = content(folder / "one"), picture(folder / "one")
    begun = as_one(latest_at(folder / "one", 1), "weights.")
    assert error(as_one(reference, "weights."), begun) > 1e-3
    for name in names:
        run = found[name]
        assert set(run["codes"]) == {0} and run["steps"] == one["steps"], run
        assert run["losses"] == pytest.approx(one["losses"], rel=CLOSE)
        assert run["losses"][3] != run["losses"][2]
        state = content(folder / name)
        assert state.keys() == reference.keys()
        for kind in ("weights.", "ema.shadow.", "optimiser."):
            assert error(as_one(state, kind), as_one(reference, kind)) < 2e-4, (name, kind)
        assert abs(picture(folder / name) - sheet).max() <= 2  # of 255
        assert ldm.load(folder / name / "model").family.unet == LITTLE.unet
        assert (folder / name / "card.md").is_file()


def latest_at(run, step):
    """All tensors of a checkpoint."""
    tensors = load(run / f"step-{step:08}").tensors
    return {f"{group}.{name}": x for group, named in tensors.items() for name, x in named.items()}


def as_one(state, kind):
    """All numbers of a kind in a row."""
    return torch.cat([x.flatten().double() for key, x in sorted(state.items()) if key.startswith(kind)])


def picture(run):
    paths = sorted((run / "sheets").iterdir())
    assert [path.name for path in paths][-1] == "step-00000004.png"
    return np.asarray(Image.open(paths[-1]).convert("RGB")).astype(int)


@pytest.mark.slow
def test_two_processes_are_one(few):
    folder, found = few
    check_alike(folder, found, ["ddp", "ddp-fsdp"])
    other = found["seed"]["losses"][0]
    assert abs(other - found["one"]["losses"][0]) > 100 * CLOSE  # by which the test can fail
    assert [log.count("model") for log in found["ddp"]["logs"]] == [1, 0]  # the first alone writes and tells
    assert "Warning" not in "".join(found["ddp"]["logs"])


def check_ended(folder, found, name):
    """One process ended at step 3, the other soon after with a sentence; what was saved is there."""
    run = found[name]
    own, others = run["codes"][1], run["codes"][0]
    assert own == (-9 if name.startswith("dies") else 1) and others == 2, run
    assert run["apart"] < 30
    last = run["logs"][0].splitlines()[-1]
    assert last.startswith("ldm: process 1 of 2 lost another, whose own message says why") and is_sentence(
        last
    )
    assert "Traceback" not in run["logs"][0]
    assert run["steps"] == [2, 1] and all(is_whole(path) for path in listed(folder / name))
    assert latest(folder / name).step == 2 and len(run["losses"]) == 2


@pytest.mark.slow
def test_where_one_is_killed_all_end_and_what_was_saved_stays(few):
    check_ended(*few, "dies-ddp")


@slow
def test_where_one_fails_all_end(tmp_path):
    folder, found = group(tmp_path, "ends")
    for name in ("raises-ddp", "raises-fsdp", "dies-ddp", "dies-fsdp"):
        check_ended(folder, found, name)
        assert ("this process fails" in found[name]["logs"][1]) == name.startswith("raises")


@slow
def test_parts_of_a_model_are_the_model(tmp_path):
    """FSDP2 from the start, and every resumption from one way to another."""
    folder, found = group(tmp_path, "fsdp")
    check_alike(folder, found, ["ddp", "fsdp", *(f"{old}-{new}" for old, new, _ in WAYS)])


@slow
def test_a_layer_that_nobody_hears_stops_no_one(tmp_path):
    """As Stable Diffusion 2's text encoder has one; it stays as it was."""
    _, found = group(tmp_path, "layers")
    for name in ("ddp", "fsdp"):
        run = found[f"unheard-{name}"]
        assert set(run["codes"]) == {0} and run["losses"] == pytest.approx(
            found["unheard-one"]["losses"], CLOSE
        )
        assert "find_unused_parameters" not in "".join(run["logs"])


@slow
def test_a_lora_and_a_word_are_trained_by_two_processes_too(tmp_path):
    folder, found = group(tmp_path, "others")
    for kind, name in (("lora", "lora-peft"), ("inversion", "word")):
        one, two = (found[f"{kind}-{size}"] for size in (1, 2))
        assert two["codes"] == [0, 0] and two["losses"] == pytest.approx(one["losses"], rel=CLOSE)
        files = [read_all(folder / f"{kind}-{size}" / f"{name}.safetensors") for size in (1, 2)]
        assert files[0].keys() == files[1].keys()
        assert error(as_one(files[1], ""), as_one(files[0], "")) < 1e-3


def python(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def torchrun(*arguments):
    return python("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *arguments)


@slow
@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_torchrun_starts_them(tmp_path, spread):
    folder = place(tmp_path, LITTLE)
    more = {**BOTH, "steps": 2, "spread": spread}
    done = torchrun("ldm", "train", "diffusion", *words(told(folder, folder / "two", **more)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / "two" / name) for name in ("model", "card.md")]
    one = python("ldm", "train", "diffusion", *words(told(folder, folder / "one", **BOTH)))
    assert one.returncode == 0, one.stderr
    assert losses(folder / "two") == pytest.approx(losses(folder / "one")[:2], rel=CLOSE)


@slow
@pytest.mark.parametrize("how", ["raises", "dies"])
def test_torchrun_ends_them(tmp_path, how):
    """Within 30 seconds of the failure, in step 3, while step 2 may still be being saved."""
    folder = place(tmp_path, LITTLE)
    settings = told(folder, folder / "run", batch=8, steps=1000, save_every=1)
    done = torchrun("tests.training.pairs", how, "train", "diffusion", *words(settings))
    assert done.returncode != 0
    assert time.time() - (folder / "run" / "metrics.jsonl").stat().st_mtime < 30
    assert latest(folder / "run").step in (1, 2)
    again = torchrun("ldm", "train", "diffusion", "--resume", *words(settings), "steps=4")
    assert again.returncode == 0 and metrics(folder / "run")[-1]["step"] == 4
