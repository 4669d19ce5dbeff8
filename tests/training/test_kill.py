"""A run that is killed with SIGKILL anywhere loses nothing, and ends in the state of one that never was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is a fork")
@pytest.mark.parametrize("kills", [20, pytest.param(150, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, kills):
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.trainee", str(tmp_path / "run"), str(kills), "0"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == [] and "passed over" not in done.stderr
    assert found["kills"] == kills and found["compared"] > kills / 4, found
    assert found["midway"] > kills / 10, f"too few kills fell into a save: {found}"
    assert found["left"] == [f"step-{found['steps'] - 1:08d}", f"step-{found['steps']:08d}"]
