"""The attention kernels compiled ahead of time for sm_90 (H100, H200) use what that chip has, and no more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
SHARED = 227 * 1024  # bytes that a program may have
SPILLED = {512: 512}  # bytes of a thread that do not fit in registers; the widest head's sums are 128 of 255


@pytest.fixture(scope="module")
def told():
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compiled"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "kernels"), *sys.path]))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_each_shape_fits_the_chip(told):
    assert len(told) == 26
    for kernel in told:
        width = kernel["shape"][2]
        assert kernel["reg"] <= 255 and kernel["stack"] <= SPILLED.get(width, 0), kernel
        assert 0 < kernel["shared"] <= SHARED, kernel
        assert kernel["wgmma"] >= 2, kernel  # scores and values, both summed in float32
