"""Inversion is the inverse of DDIM."""

import pytest
import torch

from ldm.errors import InputError
from ldm.oracle import GaussianMixture
from ldm.schedulers import CLEAN, Schedule
from ldm.schedulers.solvers import ddim, invert
from ldm.schedulers.spacing import leading, trailing
from tests.tiny import error, unit_noise

SCHEDULE = Schedule()
ORACLE = GaussianMixture()


def forth(x, path):
    *_, (x, _) = ddim(ORACLE, x, path, lambda: x)
    return x


@pytest.mark.parametrize("steps", [5, 20, 100])
def test_there_and_back_is_the_identity(steps):
    path = leading(SCHEDULE, steps, SCHEDULE.at(0))
    noise = unit_noise(0, 2, 4, 8, 8).double()
    image = forth(noise, path)
    *_, (back, miss) = invert(ORACLE, image, path, rounds=200, tolerance=1e-12)
    assert error(forth(back, path), image) < 1e-9 and miss <= 1e-12


def test_the_usual_inversion_misses_what_the_refined_one_hits():
    path = leading(SCHEDULE, 20, SCHEDULE.at(0))
    image = forth(unit_noise(0, 2, 4, 8, 8).double(), path)
    *_, (usual, _) = invert(ORACLE, image, path, rounds=1)
    *_, (refined, _) = invert(ORACLE, image, path, rounds=100)
    assert error(forth(refined, path), image) < 1e-6 < 1e-3 < error(forth(usual, path), image)


def test_noise_found_has_the_distribution_of_noise():
    path = trailing(SCHEDULE, 200, SCHEDULE.at(0))
    image = ORACLE.draw(unit_noise(0, 1, 4, 50, 50).double(), SCHEDULE.at(0))
    *_, (noise, _) = invert(ORACLE, image, path, rounds=50)
    assert float(noise.mean()) == pytest.approx(0, abs=0.05) and float(noise.std()) == pytest.approx(
        1, abs=0.05
    )


def test_the_miss_told_is_the_miss_of_the_step():
    path = leading(SCHEDULE, 8, SCHEDULE.at(0))
    x = forth(unit_noise(0, 1, 4, 4, 4).double(), path)
    now, nxt = path[-2:]
    (found, miss), *_ = invert(ORACLE, x, path, rounds=3, tolerance=0.0)
    off = error(forth(found, (now, nxt)), x)
    assert off == pytest.approx(miss, rel=1e-6) and 0 < miss < 1


def test_a_clean_end_is_refused():
    with pytest.raises(InputError, match="ends clean"):
        next(invert(ORACLE, torch.zeros(1, 1, 2, 2), leading(SCHEDULE, 4, CLEAN)))
