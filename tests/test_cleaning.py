"""Noisy pictures: how much noise there is, and without it."""

import numpy as np
import pytest
import torch

import ldm
from ldm.cleaning import begun, noise_of
from ldm.errors import InputError
from ldm.families import SD1
from tests.tiny import make, unit_noise

QUIET = {"progress": False}


@pytest.mark.parametrize("std", [0.01, 0.05, 0.2, 1.0])
def test_the_noise_is_measured(std):
    slope = torch.linspace(-0.5, 0.5, 128)
    plane = (slope[:, None] + slope[None]).expand(1, 3, -1, -1)
    edges = torch.where(slope[None] > 0.1, plane, -plane)
    for picture in (plane, edges):
        assert noise_of(picture + std * unit_noise(0, 1, 3, 128, 128)) == pytest.approx(std, rel=0.05)
        assert noise_of(picture) < 1e-5


def test_it_begins_at_the_level_that_has_the_noise():
    for r in (0.1, 1.0, 5.0):
        alpha, times = begun(SD1.schedule, r, 4)
        level = SD1.schedule.at(times[0])
        assert level.ratio == pytest.approx(r, rel=1e-3) and alpha == pytest.approx(level.alpha)
        assert times == sorted(times, reverse=True) and len(times) == 4 and times[-1] > 0
    for r, t in ((0.0, 1), (1e9, 998)):
        assert begun(SD1.schedule, r, 1)[1][0] == pytest.approx(t, abs=0.01)


def test_a_trained_model_takes_noise_away_and_tells_how_much():
    pipe = ldm.load()
    picture = np.asarray(pipe("a large red circle on a navy background", seed=1, **QUIET)[0], float)
    for std in (3, 20, 60):
        noisy = (
            (picture + np.random.default_rng(0).normal(0, std, picture.shape)).clip(0, 255).astype(np.uint8)
        )
        found = ldm.denoise(pipe, noisy, **QUIET)
        before, after = (((np.asarray(x, float) - picture) ** 2).mean() for x in (noisy, found[0]))
        assert after < before / 1.5 and found.parameters["task"] == "denoise"
        if std < 50:  # more is cut off at black and white
            assert found.parameters["noise_std"] * 127.5 == pytest.approx(std, rel=0.25)
    known = ldm.denoise(pipe, noisy, noise_std=60 / 127.5, **QUIET)
    assert known.parameters["noise_std"] == 60 / 127.5


def test_a_model_that_knows_nothing_does_little_harm():
    pipe = make()
    picture = np.full((16, 16, 3), 0.5)
    noisy = (picture + np.random.default_rng(0).normal(0, 0.02, picture.shape)).astype(np.float32)
    found = ldm.denoise(pipe, noisy, output_type="np", num_inference_steps=2, **QUIET).images[0]
    assert np.abs(found - noisy).max() < 0.05  # a random autoencoder misses by far more


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise_std": -1}, "noise_std must be a number"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"strength": 0.5}, "strength is decided"),
        ({"sampler": "ddim"}, "sampler is decided"),
        ({"output_type": "gif"}, "output_type"),
    ],
)
def test_wrong_ways_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        ldm.denoise(make(), np.zeros((16, 16, 3)), **options)
