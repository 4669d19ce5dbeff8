"""Laws of the reverse process."""

from itertools import pairwise
from math import log2, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.schedulers import CLEAN, Level, Schedule, ancestral, sampler, step
from ldm.schedulers.solvers import ddim
from ldm.schedulers.spacing import exponential, leading, trailing
from tests.tiny import error, unit_noise

SCHEDULE = Schedule()
MEAN, SPREAD = 0.4, 0.5  # of Gaussian data, for which everything is known in closed form


def exact(x, level):
    """E[x0 | x] where x0 is Gaussian."""
    variance = level.alpha**2 * SPREAD**2 + level.sigma**2
    return MEAN + level.alpha * SPREAD**2 / variance * (x - level.alpha * MEAN)


def flow(x, now, nxt):
    """Where the probability flow of Gaussian data takes x: its standard score is kept."""

    def deviation(level):
        return sqrt(level.alpha**2 * SPREAD**2 + level.sigma**2)

    return nxt.alpha * MEAN + deviation(nxt) / deviation(now) * (x - now.alpha * MEAN)


def bent(x, level):
    """A denoiser that is bounded and far from linear."""
    return torch.sin(3 * x) * level.alpha


def last(steps):
    *_, (x, _) = steps
    return x


def never():
    raise AssertionError("no noise was to be drawn")


def test_ddim_is_of_first_order_on_an_exact_denoiser():
    x = unit_noise(0, 1, 4, 8, 8).double()

    def miss(steps):
        path = exponential(SCHEDULE, steps + 1)[:-1]
        return error(last(ddim(exact, x, path, never)), flow(x, path[0], path[-1]))

    misses = [miss(steps) for steps in (128, 256, 512)]
    orders = [log2(a / b) for a, b in pairwise(misses)]
    assert orders == [pytest.approx(1, abs=0.05)] * 2
    assert misses[-1] < 0.01


def test_ddim_is_eulers_method_in_the_coordinates_x_over_alpha_and_sigma_over_alpha():
    path = exponential(SCHEDULE, 12)
    x = unit_noise(0, 2, 4, 8, 8).double()
    y = x / path[0].alpha
    for now, nxt in pairwise(path):
        slope = (y - bent(now.alpha * y, now)) / now.ratio  # dy / d ratio (Karras et al. 2022, eq. 3)
        y = y + (nxt.ratio - now.ratio) * slope
    assert error(last(ddim(bent, x, path, never)), nxt.alpha * y) <= 1e-12


def test_ddpm_is_euler_ancestral_in_the_coordinates_x_over_alpha_and_sigma_over_alpha():
    path = exponential(SCHEDULE, 12)
    x, draws = unit_noise(0, 2, 4, 8, 8).double(), unit_noise(1, 12, 2, 4, 8, 8).double()
    y = x / path[0].alpha
    for now, nxt, z in zip(path, path[1:], draws, strict=False):
        up = nxt.ratio * sqrt(1 - (nxt.ratio / now.ratio) ** 2)
        down = sqrt(nxt.ratio**2 - up**2)
        slope = (y - bent(now.alpha * y, now)) / now.ratio
        y = y + (down - now.ratio) * slope + up * z
    rest = iter(draws)
    assert error(last(ddim(bent, x, path, lambda: next(rest), eta=1.0)), y) <= 1e-12


@pytest.mark.parametrize("pair", [("ddim", "euler"), ("ddpm", "euler_ancestral")])
def test_two_names_of_one_solver_agree_on_one_path(pair):
    path = leading(SCHEDULE, 9)
    x = unit_noise(0, 1, 4, 4, 4)
    found = []
    for name in pair:
        draws = iter(unit_noise(1, 9, 1, 4, 4, 4))
        found.append(last(sampler(name).solve(bent, x, path, lambda draws=draws: next(draws))))
    assert torch.equal(*found)


@pytest.mark.parametrize("t", [1, 2, 500, 999])
def test_one_ddpm_step_is_the_posterior_of_ho_et_al(t):
    """Eq. 7: the mean and variance of q(x_{t-1} | x_t, x_0)."""
    now, nxt = SCHEDULE.at(t), SCHEDULE.at(t - 1)
    beta, bar, before = SCHEDULE.betas[t], now.alpha**2, nxt.alpha**2
    x, x0 = unit_noise(0, 1, 4, 4, 4).double(), unit_noise(1, 1, 4, 4, 4).double()
    mean = sqrt(before) * beta / (1 - bar) * x0 + sqrt(1 - beta) * (1 - before) / (1 - bar) * x
    up = ancestral(now, nxt, eta=1.0)
    assert up**2 == pytest.approx((1 - before) / (1 - bar) * beta, rel=1e-8)
    assert error(step(x, x0, now, nxt, up, torch.zeros_like(x)), mean) <= 1e-8


levels = st.integers(0, 999).map(SCHEDULE.at)


@given(levels, levels, st.floats(0, 1), st.integers(0, 99))
def test_a_step_from_the_truth_stays_on_the_forward_process(a, b, eta, seed):
    now, nxt = (a, b) if a.t >= b.t else (b, a)
    x0, eps, z = (unit_noise(seed + i, 1, 1, 4, 4).double() for i in range(3))
    up = ancestral(now, nxt, eta)
    x = step(now.alpha * x0 + now.sigma * eps, x0, now, nxt, up, z)
    noise = (x - nxt.alpha * x0) / nxt.sigma
    share = up / nxt.sigma
    assert torch.allclose(noise, sqrt(max(0, 1 - share**2)) * eps + share * z, atol=1e-9)


@given(levels, st.floats(0, 1))
def test_the_last_step_onto_a_clean_level_is_x0(now, eta):
    x, x0 = unit_noise(0, 1, 1, 4, 4), unit_noise(1, 1, 1, 4, 4)
    assert ancestral(now, CLEAN, eta) == 0
    assert torch.equal(step(x, x0, now, CLEAN), x0)


def test_no_step_is_no_change():
    x, level = unit_noise(0, 1, 1, 4, 4).double(), SCHEDULE.at(300)
    assert error(step(x, bent(x, level), level, level), x) <= 1e-12


def test_fresh_noise_is_monotone_in_eta_and_bounded_by_sigma():
    now, nxt = SCHEDULE.at(700), SCHEDULE.at(400)
    ups = [ancestral(now, nxt, eta) for eta in (0, 0.25, 0.5, 1)]
    assert ups[0] == 0 and ups == sorted(ups) and ups[-1] < nxt.sigma


def test_ddpm_keeps_the_distribution_of_gaussian_data():
    """Ancestral sampling with the exact denoiser ends with the data's mean and spread."""
    path = exponential(SCHEDULE, 200, CLEAN)
    x = path[0].alpha * MEAN + unit_noise(0, 64, 4, 16, 16)
    generator = torch.Generator().manual_seed(1)
    x = last(ddim(exact, x, path, lambda: torch.randn(x.shape, generator=generator), eta=1.0))
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)  # 65536 numbers: ± 0.002
    assert float(x.std()) == pytest.approx(SPREAD, abs=0.02)  # and 200 steps of first order


def test_the_start_is_not_touched():
    x = unit_noise(0, 1, 4, 4, 4)
    kept = x.clone()
    last(ddim(bent, x, trailing(SCHEDULE, 3), lambda: torch.ones_like(x), eta=1.0))
    assert torch.equal(x, kept)


def test_each_step_is_the_callers_own():
    path, calls = leading(SCHEDULE, 5), []

    def denoise(x, level):
        calls.append(level)
        return bent(x, level)

    steps = ddim(denoise, unit_noise(0, 1, 4, 4, 4), path, never)
    next(steps)
    next(steps)
    assert calls == list(path[:2])
    assert len(list(steps)) == 3


def test_a_level_is_three_numbers():
    assert Level(1, 0.6, 0.8) == (1, 0.6, 0.8)
