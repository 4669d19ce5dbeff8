"""Triton's norms and gates under its interpreter against PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from ldm_kernels.norms import geglu, group_norm, layer_norm

from tests.tiny import unit_noise

BOUNDS = {torch.float32: 4e-6, torch.float16: 1e-3}  # of the largest output: roundings, 2^-11 each in float16


def error(found, wanted):
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@settings(max_examples=20, deadline=None)
@given(
    b=st.integers(1, 2), groups=st.sampled_from([1, 4, 32]), each=st.integers(1, 12), h=st.integers(1, 20),
    w=st.integers(1, 20), silu=st.booleans(), dtype=st.sampled_from(list(BOUNDS)),
)  # fmt: skip
def test_group_norm(b, groups, each, h, w, silu, dtype):
    c = groups * each
    x = unit_noise(0, b, c, h, w).to(dtype).to(memory_format=torch.channels_last)
    weight, bias = unit_noise(1, c).to(dtype), unit_noise(2, c).to(dtype)
    if h * w * each == 1:
        return  # nothing but rounding is left of one number
    wanted = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
    wanted = F.silu(wanted) if silu else wanted
    found = group_norm(x, groups, weight, bias, 1e-5, silu)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == dtype
    assert error(found, wanted) < BOUNDS[dtype]


def test_a_mean_far_from_zero_costs_no_digits():
    x = (unit_noise(0, 1, 64, 33, 17) + 1000).to(memory_format=torch.channels_last)
    one, none = torch.ones(64), torch.zeros(64)
    wanted = F.group_norm(x.double(), 32, one.double(), none.double(), 1e-5)
    naive = (x.square().mean() - x.mean().square()).double()
    assert error(group_norm(x, 32, one, none, 1e-5), wanted) < 2e-4  # as torch's: 1000 has 6e-5 of rounding
    assert abs(float(naive) - 1) > 0.01  # what sums of squares would give


def test_norms_of_part_of_a_tensor():
    x = unit_noise(0, 2, 96, 9, 9).to(memory_format=torch.channels_last)[:, 32:]
    one, none = torch.ones(64), torch.zeros(64)
    assert error(group_norm(x, 32, one, none, 1e-6), F.group_norm(x.double(), 32, eps=1e-6)) < 4e-6


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("shape", [(1, 320), (2, 7, 640), (3, 5, 40)])
def test_layer_norm(shape, dtype):
    x, c = unit_noise(0, *shape).to(dtype) + 3, shape[-1]
    weight, bias = unit_noise(1, c).to(dtype), unit_noise(2, c).to(dtype)
    wanted = F.layer_norm(x.double(), (c,), weight.double(), bias.double())
    assert error(layer_norm(x, weight, bias), wanted) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("shape", [(1, 2), (2, 7, 2560), (3, 5, 2048)])
def test_geglu(shape, dtype):
    x = unit_noise(0, *shape).to(dtype) * 3
    h, gate = x.double().chunk(2, dim=-1)
    assert error(geglu(x), h * F.gelu(gate)) < BOUNDS[dtype]
    assert error(geglu(x), h * F.gelu(gate, approximate="tanh")) > 1e-7  # it is the exact one
