"""Learning rates at given steps."""

import pickle
from math import cos, pi

import pytest
import torch

from ldm.errors import InputError
from ldm.training import rate
from ldm.training.rates import RATES


def test_constant_is_one():
    assert [rate("constant", 10)(step) for step in (0, 5, 9, 10, 99)] == [1.0] * 5


def test_a_warm_up_rises_in_equal_parts_and_stays():
    found = [rate("constant", 100, warmup=4)(step) for step in (0, 1, 2, 3, 4, 99, 100)]
    assert found == [0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_linear_falls_in_equal_parts():
    assert [rate("linear", 4)(step) for step in range(6)] == [1, 0.75, 0.5, 0.25, 0, 0]


def test_cosine_is_half_a_wave():
    found = [rate("cosine", 1000)(step) for step in (0, 250, 500, 999, 1000, 2000)]
    end = (1 + cos(0.999 * pi)) / 2
    assert found == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, end, 0, 0], abs=1e-12) and found[3] > 0


def test_cosine_begins_where_its_warm_up_ends():
    found = [rate("cosine", 110, warmup=10)(step) for step in (0, 9, 10, 60, 110)]
    assert found == pytest.approx([0.1, 1, 1, 0.5, 0], abs=1e-12)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("warmup", [0, 1, 7, 20])
def test_factors_are_never_zero_within_a_run_rise_once_and_reach_one(name, warmup):
    found = [rate(name, 20, warmup)(step) for step in range(20)]
    assert all(0 < factor <= 1 for factor in found) and max(found) == 1
    peak = max(0, warmup - 1)
    assert sorted(found[:peak]) == found[:peak]
    assert sorted(found[peak:], reverse=True) == found[peak:]
    assert rate(name, 20, warmup)(20) == (name == "constant")


def test_the_rates_differ():
    assert len({rate(name, 20)(7) for name in RATES}) == len(RATES)


def test_a_rate_fits_torchs_scheduler_and_pickles():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    law = pickle.loads(pickle.dumps(rate("cosine", 10, warmup=2)))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, law)
    found = []
    for _ in range(10):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx([2 * law(step) for step in range(10)])


def test_an_unknown_rate_is_told_the_known_ones():
    with pytest.raises(
        InputError, match=r"unknown rate 'cosin'; did you mean 'cosine'\? there are constant, "
    ):
        rate("cosin", 10)


@pytest.mark.parametrize("steps, warmup", [(0, 0), (10, 11), (10, -1), (2.5, 0)])
def test_a_warm_up_fits_its_run(steps, warmup):
    with pytest.raises(InputError, match=r"(steps|warmup) must be"):
        rate("linear", steps, warmup)
