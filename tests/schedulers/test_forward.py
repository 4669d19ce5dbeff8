"""Laws of the forward process and of the predictions."""

from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.schedulers import CLEAN, EPS, X0, Level, Schedule, V, linear, scaled_linear
from tests.tiny import error, unit_noise

SCHEDULES = [Schedule(), Schedule(0.0001, 0.02, 1000, linear), Schedule(0.001, 0.05, 200, scaled_linear)]
TIMES = st.floats(0, 199)


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(t=TIMES)
def test_signal_and_noise_power_add_to_one(schedule, t):
    level = schedule.at(t)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_signal_only_falls(schedule):
    assert (np.diff(schedule.alphas) < 0).all() and (np.diff(schedule.sigmas) > 0).all()
    assert 0 < schedule.alphas[-1] < schedule.alphas[0] < 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(t=TIMES)
def test_at_lam_inverts_at(schedule, t):
    level = schedule.at(t)
    assert schedule.at_lam(level.lam) == pytest.approx(level, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_at_whole_steps_are_the_table(schedule):
    for t in (0, 1, 57, schedule.steps - 1):
        assert schedule.at(t) == pytest.approx((t, schedule.alphas[t], schedule.sigmas[t]), rel=1e-12)


def test_alpha_bar_is_the_running_product_of_one_less_beta():
    product = 1.0
    schedule = Schedule()
    for t, beta in enumerate(schedule.betas[:50]):
        product *= 1 - beta
        assert schedule.alphas[t] ** 2 == pytest.approx(product, rel=1e-12)


def test_stable_diffusions_schedule_ends_where_its_papers_say():
    schedule = Schedule()
    assert (schedule.betas[0], schedule.betas[-1]) == pytest.approx((0.00085, 0.012))
    # the range of k-diffusion's Stable Diffusion wrapper
    assert (schedule.at(0).ratio, schedule.at(999).ratio) == pytest.approx((0.0292, 14.6146), abs=1e-4)


def test_lam_and_ratio_are_two_names_of_one_thing():
    level = Schedule().at(321.5)
    assert np.exp(-level.lam) == pytest.approx(level.ratio)
    assert CLEAN.lam == inf and CLEAN.ratio == 0


def test_add_noise_is_alpha_x0_plus_sigma_eps_for_each_row():
    schedule, t = Schedule(), torch.tensor([0, 500, 999])
    x0, eps = unit_noise(0, 3, 4, 5, 6), unit_noise(1, 3, 4, 5, 6)
    rows = [
        schedule.at(int(i)).alpha * a + schedule.at(int(i)).sigma * b
        for i, a, b in zip(t, x0, eps, strict=True)
    ]
    assert error(schedule.add_noise(x0, eps, t), torch.stack(rows)) <= 1e-6


@pytest.mark.parametrize("t", [-1, 2000, 999.5, np.nan, np.inf, "5", True, None, [1]])
def test_there_is_no_level_outside_the_schedule(t):
    with pytest.raises(InputError, match="t must be a number from 0 to 999"):
        Schedule().at(t)


BAD_TIMES = [5, 2.5, None, [5], np.array([5]), torch.tensor(5), torch.tensor([[5]])]
BAD_TIMES += [torch.tensor([value]) for value in (-1, 1000, 2000, 2.5, 1.0, True)]
BAD_TIMES += [torch.tensor([], dtype=torch.long), torch.zeros(1, dtype=torch.long, device="meta")]


@pytest.mark.parametrize("t", BAD_TIMES, ids=range(len(BAD_TIMES)))
def test_noise_is_added_at_whole_steps_of_the_schedule(t):
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(InputError, match="t must be"):
        Schedule().add_noise(x, x, t)


def test_noised_data_of_unit_variance_keeps_it():
    x = Schedule().add_noise(unit_noise(0, 8, 4, 32, 32), unit_noise(1, 8, 4, 32, 32), torch.arange(8) * 120)
    assert x.var(dim=(1, 2, 3)).tolist() == pytest.approx([1] * 8, abs=0.1)  # 4096 numbers: ± 2 per cent


@pytest.mark.parametrize("prediction", [EPS, V, X0], ids=lambda p: p.name)
@given(t=st.floats(0, 999), seed=st.integers(0, 99))
def test_x0_of_the_target_is_x0(prediction, t, seed):
    level = Schedule().at(t)
    x0, eps = unit_noise(seed, 1, 2, 3, 3).double(), unit_noise(seed + 1, 1, 2, 3, 3).double()
    x = level.alpha * x0 + level.sigma * eps
    out = prediction.target(x0, eps, level)
    assert torch.allclose(prediction.x0(x, out, level), x0, atol=1e-10)


def test_v_is_orthogonal_to_x_in_the_plane_of_x0_and_eps():
    """v = dx/dphi with x = cos(phi) x0 + sin(phi) eps (Salimans & Ho 2022, app. D)."""
    phi, step = 0.7, 1e-6
    x0, eps = unit_noise(0, 1, 4, 4, 4).double(), unit_noise(1, 1, 4, 4, 4).double()
    x = lambda phi: np.cos(phi) * x0 + np.sin(phi) * eps  # noqa: E731
    slope = (x(phi + step) - x(phi - step)) / (2 * step)
    assert torch.allclose(V.target(x0, eps, Level(0, np.cos(phi), np.sin(phi))), slope, atol=1e-8)


def test_predictions_of_a_batch_are_those_of_its_rows():
    schedule, t = Schedule(), torch.tensor([3, 700])
    x, out = unit_noise(0, 2, 4, 3, 3), unit_noise(1, 2, 4, 3, 3)
    for prediction in (EPS, V, X0):
        both = prediction.x0(x, out, schedule.levels(t))
        for i in range(2):
            alone = prediction.x0(x[i], out[i], schedule.at(int(t[i])))
            assert error(both[i], alone) <= 1e-6
