"""All samplers on an exact denoiser: how fast they converge, and to what."""

import pickle
from itertools import pairwise
from math import log2

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.families import SD1
from ldm.noise import Brownian
from ldm.oracle import GaussianMixture
from ldm.schedulers import CLEAN, Level, Schedule, sampler
from ldm.schedulers.samplers import SAMPLERS
from ldm.schedulers.spacing import Path, exponential, karras, leading
from tests.tiny import error, unit_noise

SCHEDULE = Schedule()
ORACLE = GaussianMixture()
ODE = {  # name, options of the sampler, order of convergence
    "ddim": ({}, 1), "heun": ({}, 2), "dpm_2": ({}, 2), "lms": ({}, 2), "plms": ({}, 2), "dpmpp_2m": ({}, 2),
    "uni_pc": ({}, 2), "dpmpp_2m_sde": ({"eta": 0}, 2), "dpmpp_sde": ({"eta": 0}, 2),
    "dpmpp_3m_sde": ({"eta": 0}, 2),
}  # fmt: skip
STOCHASTIC = [name for name, chosen in SAMPLERS.items() if chosen.brownian]


def never():
    raise AssertionError("no noise was to be drawn")


def last(steps):
    *_, (x, _) = steps
    return x


def end_of(name, steps, x, noise=never, oracle=ORACLE, **options):
    path = exponential(SCHEDULE, steps + 1)[:-1]
    return last(sampler(name, **options).solve(oracle, x, path, noise)), path


@pytest.mark.parametrize("name", ODE)
def test_the_flow_is_followed_with_the_order_of_the_solver(name):
    options, order = ODE[name]
    x = unit_noise(0, 1, 4, 16, 16).double()
    misses = []
    for steps in (64, 128, 256):
        found, path = end_of(name, steps, x, **options)
        misses.append(error(found, ORACLE.flow(x, path[0], path[-1])))
    orders = [log2(a / b) for a, b in pairwise(misses)]
    assert min(orders) > order - 0.25, (misses, orders)
    assert misses[-1] < (0.02 if order == 1 else 2e-3)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_brownian_noise_makes_the_end_independent_of_the_number_of_steps(name):
    x, shape, single = unit_noise(0, 1, 4, 8, 8), (4, 8, 8), GaussianMixture((1.0,), (0.3,), (0.5,))

    def end(seed, steps):
        return end_of(name, steps, x, Brownian([seed], shape, *SCHEDULE.lams), single)[0]

    same = [end(3, steps) for steps in (25, 50, 100, 400)]
    gaps = [error(a, same[-1]) for a in same[:-1]]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.1
    assert error(end(4, 400), same[-1]) > 5 * gaps[2]


@pytest.mark.parametrize("name", [*STOCHASTIC, "ddpm", "euler_ancestral"])
def test_stochastic_samplers_end_in_the_distribution_of_the_data(name):
    path = exponential(SCHEDULE, 60)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 100, 100, generator=generator)
    x = last(sampler(name).solve(ORACLE, x, path, lambda: torch.randn(x.shape, generator=generator)))
    assert float((x < -0.2).float().mean()) == pytest.approx(0.3, abs=0.03)  # 40,000 numbers: ± 0.003
    for low, high, mean, spread in ((-9, -0.2, -1, 0.3), (-0.2, 9, 0.6, 0.2)):
        part = x[(x > low) & (x < high)]
        assert float(part.mean()) == pytest.approx(mean, abs=0.03)
        assert float(part.std()) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_ends_in_the_data_and_is_told_a_falling_path(name):
    path = sampler(name).path(SCHEDULE, 60, SD1.spacing, SD1.last)
    x, generator = unit_noise(0, 1, 4, 16, 16), torch.Generator().manual_seed(0)
    steps = list(sampler(name).solve(ORACLE, x, path, lambda: torch.randn(x.shape, generator=generator)))
    assert len(steps) == len(path) - 1
    end = steps[-1][0]
    assert float(((end + 1).abs() < 1).float().mean() + ((end - 0.6).abs() < 0.7).float().mean()) > 0.97
    assert all(x0.shape == x.shape for _, x0 in steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_flow_through_two_steps_where_they_are_asked_for(name):
    path = sampler(name).path(SCHEDULE, 2, SD1.spacing, SD1.last)
    x, draws = unit_noise(0, 1, 1, 3, 3).double(), iter(unit_noise(1, 9, 1, 1, 3, 3).double())
    kept = list(draws)

    def loss(x):
        rest = iter(kept)
        return last(sampler(name).solve(ORACLE, x, path, lambda: next(rest))).square().sum()

    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(x), x)
    aside = torch.zeros_like(x).flatten()
    aside[4] = 1e-5
    aside = aside.reshape(x.shape)
    numeric = (loss(x.detach() + aside) - loss(x.detach() - aside)) / 2e-5
    assert float(slope.flatten()[4]) == pytest.approx(float(numeric), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_and_a_single_level_are_paths_too(name):
    x = unit_noise(0, 1, 4, 4, 4)
    path = sampler(name).path(SCHEDULE, 1, SD1.spacing, SD1.last)
    assert len(list(sampler(name).solve(ORACLE, x, path, lambda: torch.zeros_like(x)))) == 1
    assert not list(sampler(name).solve(ORACLE, x, path[:1], never))


@pytest.mark.parametrize("name", SAMPLERS)
def test_paths_may_begin_without_any_signal(name):
    schedule = Schedule(zero_snr=True)
    path = sampler(name, spacing="trailing").path(schedule, 10, SD1.spacing, SD1.last)
    assert path[0].alpha == 0 and path[0].sigma == 1
    x, generator = unit_noise(0, 1, 4, 8, 8), torch.Generator().manual_seed(0)
    end = last(sampler(name).solve(ORACLE, x, path, lambda: torch.randn(x.shape, generator=generator)))
    assert bool(torch.isfinite(end).all()) and float(end.std()) > 0.3


def test_the_oracle_is_the_mean_of_what_x_may_come_from():
    """E[x0 | x] by adding up over x0, without the formula."""
    grid = torch.linspace(-4, 4, 40001, dtype=torch.float64)
    density = sum(w * torch.exp(-((grid - m) ** 2) / (2 * s * s)) / s for w, m, s in ORACLE.parts())
    for t in (1, 200, 600, 999):
        level = SCHEDULE.at(t)
        for x in (-1.3, 0.1, 0.7):
            likely = density * torch.exp(-((x - level.alpha * grid) ** 2) / (2 * level.sigma**2))
            mean = float((likely * grid).sum() / likely.sum())
            assert float(ORACLE(torch.tensor([x], dtype=torch.float64), level)) == pytest.approx(
                mean, abs=1e-6
            )


@given(st.floats(0, 999), st.floats(0, 999), st.integers(0, 99))
def test_the_flow_there_and_back_is_nothing(a, b, seed):
    now, nxt = SCHEDULE.at(a), SCHEDULE.at(b)
    x = ORACLE.draw(unit_noise(seed, 1, 1, 4, 4).double(), now)
    assert torch.allclose(ORACLE.flow(ORACLE.flow(x, now, nxt), nxt, now), x, atol=1e-6)


def test_the_flow_is_the_limit_of_small_steps():
    x = unit_noise(0, 1, 1, 6, 6).double()
    found, path = end_of("heun", 2000, x)
    assert error(found, ORACLE.flow(x, path[0], path[-1])) < 1e-5


@pytest.mark.parametrize(
    "parts",
    [((1.0,), (0.0, 1.0), (1.0, 1.0)), ((0.5, 0.6), (0, 1), (1, 1)), ((1.0,), (0.0,), (0.0,)), ((), (), ())],
)
def test_what_is_no_mixture_is_refused(parts):
    with pytest.raises(InputError, match="mixture"):
        GaussianMixture(*parts)


def test_brownian_motion_has_the_variance_of_its_time_and_independent_parts():
    motion = Brownian([1, 2], (4, 50, 50), -2.7, 3.5)
    levels = [SCHEDULE.at(t) for t in (999, 500, 480, 100, 0)]
    rises = [motion.between(a.lam, b.lam) for a, b in pairwise(levels)]
    for rise in rises:
        assert rise.shape == (2, 4, 50, 50) and rise.dtype == torch.float32
        assert float(rise.std()) == pytest.approx(1, abs=0.03)  # 20,000 numbers: ± 0.005
    for a, b in pairwise(rises):
        assert abs(float((a * b).mean())) < 0.03
    assert abs(float((rises[0][0] * rises[0][1]).mean())) < 0.05  # of two seeds


def test_brownian_motion_does_not_depend_on_what_was_asked_before():
    motion, again = (Brownian([5], (1, 4, 4), -2.7, 3.5) for _ in range(2))
    a, b, c = (SCHEDULE.at(t).lam for t in (900, 400, 50))
    first = motion.between(a, c)
    parts = [again.between(a, b) * (b - a) ** 0.5, again.between(b, c) * (c - b) ** 0.5]
    assert torch.allclose(sum(parts), first * (c - a) ** 0.5, atol=1e-5)
    row = Brownian([7, 5], (1, 4, 4), -2.7, 3.5).between(a, c)[1]
    assert torch.equal(row, first[0])


def test_torchs_default_dtype_does_not_matter_to_brownian_motion():
    plain = Brownian([5], (1, 4, 4), -2.7, 3.5).between(-1.0, 2.0)
    torch.set_default_dtype(torch.float64)
    try:
        other = Brownian([5], (1, 4, 4), -2.7, 3.5).between(-1.0, 2.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert other.dtype == torch.float32 and torch.equal(other, plain)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"name": "heun", "eta": 0.5}, "leave eta out"),
        ({"name": "euler", "timesteps": [1, 2]}, "fall"),
        ({"name": "euler", "timesteps": []}, "timesteps"),
        ({"name": "euler", "timesteps": "many"}, "timesteps"),
        ({"name": "euler", "timesteps": [5, 5]}, "fall"),
        ({"name": "euler", "timesteps": [5, float("nan")]}, "timesteps"),
        ({"name": "euler", "sigmas": [0]}, "sigmas"),
        ({"name": "euler", "sigmas": [3, -1]}, "sigmas"),
        ({"name": "euler", "sigmas": [3, 1], "timesteps": [3, 1]}, "give one"),
        ({"name": "euler", "sigmas": [3, 1], "spacing": "karras"}, "give one"),
    ],
)
def test_lists_that_are_no_path_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        sampler(**options)


def test_a_path_of_given_times_or_ratios():
    times = sampler("euler", timesteps=[900, 400.5, 0]).path(SCHEDULE, 50, leading)
    assert [level.t for level in times[:-1]] == [900, 400.5, 0] and times[-1] == CLEAN
    ratios = sampler("euler", sigmas=[14.0, 2.0, 0.5, 0.0]).path(SCHEDULE, 50, leading)
    assert [level.ratio for level in ratios] == pytest.approx([14, 2, 0.5, 0])
    assert sampler("euler", sigmas=[14.0, 2.0, 0.5, 0.0]).steps == 3


def test_a_part_of_a_path_is_a_path_and_knows_its_schedule():
    path = karras(SCHEDULE, 10)
    assert isinstance(path[3:], Path) and path[3:].schedule is SCHEDULE
    assert pickle.loads(pickle.dumps(path)) == path
    assert isinstance(path[3], Level) and path[3:] == tuple(path)[3:]
