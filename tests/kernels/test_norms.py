"""Triton's norms and gates under its interpreter against PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from ldm_kernels import groups as of_groups
from ldm_kernels.groups import cut, group_norm, pixel_step, warps
from ldm_kernels.norms import geglu, joined, layer_norm

from tests.tiny import unit_noise

BOUNDS = {torch.float32: 4e-6, torch.float16: 1e-3}  # of the largest output: roundings, 2^-11 each in float16


def error(found, wanted):
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@settings(max_examples=15, deadline=None)
@given(
    b=st.integers(1, 2), groups=st.sampled_from([1, 4, 32]), each=st.integers(1, 12), h=st.integers(1, 20),
    w=st.integers(1, 20), silu=st.booleans(), added=st.sampled_from(["", "a row", "rows"]),
    film=st.booleans(), last=st.booleans(), small=st.booleans(), dtype=st.sampled_from(list(BOUNDS)),
)  # fmt: skip
def test_group_norm(b, groups, each, h, w, silu, added, film, last, small, dtype):
    c = groups * each
    if h * w * each == 1:
        return  # nothing but rounding is left of one number
    x = unit_noise(0, b, c, h, w).to(dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    weight, bias = unit_noise(1, c).to(dtype), unit_noise(2, c).to(dtype)
    more = unit_noise(3, 1 if added == "a row" else b, c + 5).to(dtype)[:, 5:] if added else None
    told = unit_noise(4, b, 2 * c + 3).to(dtype)[:, 3:] if film else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_groups, "SMALL", of_groups.SMALL if small else 0)
        found = group_norm(x, groups, weight, bias, 1e-5, silu, more, told)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == dtype
    assert error(found, by_torch(x, groups, weight, bias, silu, more, told)) < BOUNDS[dtype]


def by_torch(x, groups, weight, bias, silu, added, film):
    x = x.double() if added is None else x.double() + added.double()[:, :, None, None]
    y = F.group_norm(x, groups, weight.double(), bias.double(), 1e-5)
    if film is not None:
        scale, shift = film.double()[:, :, None, None].chunk(2, dim=1)
        y = y * (1 + scale) + shift
    return F.silu(y) if silu else y


@pytest.mark.parametrize(
    ("pixels", "width"), [(4096, 10), (512 * 512, 4), (1024, 80), (4096**2, 4), (64, 120)]
)
def test_parts_are_all_of_an_image_and_few_enough(pixels, width):
    share, parts = cut(pixels, width)
    assert share * (parts - 1) < pixels <= share * parts and share % of_groups.PIXELS == 0
    assert parts * width <= of_groups.MOMENTS and parts <= of_groups.MOST_PARTS


def test_small_groups_are_one_programs():
    found = {
        (n, width): warps(n, width) for n, width in [(64, 40), (256, 40), (256, 80), (1024, 40), (1024, 4)]
    }
    assert found == {(64, 40): 4, (256, 40): 16, (256, 80): 16, (1024, 40): 0, (1024, 4): 4}


def test_where_a_pixel_follows_another():
    x = torch.zeros(2, 6, 5, 4)
    last = x.to(memory_format=torch.channels_last)
    assert pixel_step(x) is None and pixel_step(last) == 6 and pixel_step(last[:, 2:]) == 6
    assert pixel_step(last[:, :, :, :3]) is None and pixel_step(last[:, :, :, :1]) == 24
    assert pixel_step(last[:, :, :1, :3]) == 6


@pytest.mark.parametrize("small", [0, of_groups.SMALL])
def test_a_mean_far_from_zero_costs_no_digits(small, monkeypatch):
    monkeypatch.setattr(of_groups, "SMALL", small)
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


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 40, 7, 9), (1, 1500, 3, 1)])
def test_joined(shape, dtype):
    x, z, bias = (unit_noise(i, *size).to(dtype) for i, size in enumerate((shape, shape, shape[1:2])))
    wanted = x.double() + z.double() + bias.double()[:, None, None]
    assert error(joined(x.to(memory_format=torch.channels_last), z, bias), wanted) < BOUNDS[dtype]
