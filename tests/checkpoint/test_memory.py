"""Loading needs the memory of the weights, and little more."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import ldm
from ldm.unet import UNetConfig
from tests import tiny

MEASURE = """
import sys
from pathlib import Path
import torch, ldm, ldm.checkpoint.plan
torch.set_num_threads(1)

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])

ldm.load(sys.argv[2])  # whatever a first load keeps for good
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
pipe = ldm.load(sys.argv[1], dtype=getattr(torch, sys.argv[3]))
weights = sum(w.nbytes for n in pipe.networks() for w in n.state_dict().values())
print((kilobytes("VmHWM") - before) * 1024 / weights, kilobytes("RssAnon"), weights)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Some 300 MB of weights in float32, no tensor of which is large beside them."""
    unet = UNetConfig(channels=(128, 256, 384), depth=(1, 1, 1), context_dim=48)
    pipe = tiny.make(replace(tiny.TINY, unet=unet))
    assert sum(p.nbytes for p in pipe.unet.parameters()) > 250e6
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    ldm.save(pipe, path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_changing_the_dtype_needs_the_new_weights_and_one_tensor_more(large, file, dtype):
    command = [sys.executable, "-c", MEASURE, str(large), str(file), dtype]
    peak, *_ = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert 0.95 <= float(peak) <= 1.06


def test_mapped_weights_are_read_when_used(file):
    assert ldm.load(file).unet.conv_in.weight.dtype == torch.float32
