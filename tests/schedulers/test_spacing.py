"""Laws of the paths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.families import SD1
from ldm.schedulers import CLEAN, Schedule, sampler
from ldm.schedulers.samplers import SAMPLERS
from ldm.schedulers.spacing import SPACINGS, exponential, karras, leading, linspace, trailing

SCHEDULE = Schedule()
END = SCHEDULE.at(0)


def visited(name, steps):
    """How many levels a path of so many steps has: as many, but for the original code's own way to count."""
    return len(range(1, 1000, 1000 // steps)) if name == "uniform" else steps


@pytest.mark.parametrize("name", SPACINGS)
@given(steps=st.integers(1, 1000))
def test_a_path_falls_from_noise_to_its_end(name, steps):
    path = SPACINGS[name](SCHEDULE, steps, CLEAN)
    few = name == "beta" and steps > 50  # some of its whole times are the same
    assert 2 < len(path) <= steps + 1 if few else len(path) == visited(name, steps) + 1
    assert path[-1] == CLEAN
    assert all(0 <= level.t <= 999 for level in path)
    assert (np.diff([level.sigma for level in path]) < 0).all()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", [None, *SPACINGS])
def test_every_sampler_follows_every_spacing(name, spacing):
    chosen = sampler(name, spacing=spacing)
    path = chosen.path(SCHEDULE, 7, leading, SD1.last)
    assert len(path) == visited(spacing, 7) + 1
    if chosen.whole:
        assert all(level.t == int(level.t) for level in path)


@pytest.mark.parametrize("name", SAMPLERS)
def test_ddim_ends_at_the_first_training_level_and_the_others_clean(name):
    *_, end = sampler(name).path(SCHEDULE, 4, leading, SD1.last)
    assert end == (END if name in ("ddim", "plms") else CLEAN)


def test_leading_is_the_original_codes_list():
    times = [level.t for level in leading(SCHEDULE, 50)[:-1]]
    assert times == list(range(1, 1000, 20))[::-1]


def test_leading_leaves_the_noisiest_level_out_and_the_others_do_not():
    assert leading(SCHEDULE, 50)[0].t == 981
    for spacing in (trailing, linspace, karras, exponential):
        assert spacing(SCHEDULE, 50)[0].t == pytest.approx(999)


def test_trailing_of_few_steps_is_that_of_the_turbo_models():
    assert [level.t for level in trailing(SCHEDULE, 4)] == [999, 749, 499, 249, 0]


def test_exponential_is_uniform_in_lambda():
    lams = [level.lam for level in exponential(SCHEDULE, 20)[:-1]]
    assert np.diff(lams) == pytest.approx(np.full(19, (END.lam - SCHEDULE.at(999).lam) / 19))


def test_karras_ratios_are_equally_spaced_in_their_seventh_root():
    roots = [level.ratio ** (1 / 7) for level in karras(SCHEDULE, 20)[:-1]]
    assert np.diff(roots) == pytest.approx(np.full(19, np.diff(roots).mean()))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"name": "eular"}, "did you mean 'euler'"),
        ({"name": 3}, "sampler"),
        ({"name": "DDIM"}, "DDIM"),
        ({"name": "ddim", "eta": 1.5}, "eta"),
        ({"name": "ddim", "eta": -1}, "eta"),
        ({"name": "ddim", "eta": float("nan")}, "eta"),
        ({"name": "ddim", "eta": "1"}, "eta"),
        ({"name": "ddim", "spacing": "karas"}, "karras"),
        ({"name": "ddim", "spacing": 4}, "spacing"),
    ],
)
def test_unknown_names_and_wrong_eta_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        sampler(**options)
