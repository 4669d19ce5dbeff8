"""The kernels compiled ahead of time for sm_90 (H100, H200) use what that chip has, and no more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
SHARED = 227 * 1024  # bytes that a program may have
REGISTERS = 65536  # of a program's threads together
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


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
STREAMS = (
    "part_moments",
    "scaled",
    "token_normed",
    "gated",
    "summed",
)  # as fast as memory is, if they read well


@pytest.mark.slow
@LINUX
def test_attention_of_each_shape_fits_the_chip(told):
    found = [kernel for kernel in told if kernel["kernel"] == "attention"]
    assert len(found) == 34
    for kernel in found:
        width = kernel["shape"][2]
        assert kernel["reg"] <= 255 and kernel["stack"] <= SPILLED.get(width, 0), kernel
        assert 0 < kernel["shared"] <= SHARED, kernel
        assert kernel["wgmma"] >= 2, kernel  # scores and values, both summed in float32


@pytest.mark.slow
@LINUX
def test_norms_and_gates_of_each_width_fit_the_chip(told):
    found = [kernel for kernel in told if kernel["kernel"] != "attention"]
    assert {kernel["kernel"] for kernel in found} == {"one_group", "group_factors", *STREAMS}
    for kernel in found:
        assert kernel["stack"] == 0 and kernel["shared"] <= SHARED, kernel
        assert kernel["reg"] * 32 * kernel["warps"] <= REGISTERS, kernel
        if kernel["kernel"] in STREAMS:
            assert kernel["reg"] <= 128 and kernel["wide"] >= 2, kernel  # 16 bytes of a thread at once
