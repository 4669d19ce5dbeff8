"""Laws of the noise."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm import Noise

SHAPE = (4, 3, 5)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5))
def test_each_image_has_the_noise_of_its_own_seed(seeds):
    both = Noise(seeds, SHAPE)
    alone = [Noise([seed], SHAPE) for seed in seeds]
    for _ in range(2):
        assert torch.equal(both(), torch.cat([noise() for noise in alone]))


def test_noise_is_fresh_each_time_and_other_for_another_seed():
    noise = Noise([1], SHAPE)
    first = noise()
    assert not torch.equal(first, noise()) and not torch.equal(first, Noise([2], SHAPE)())


def test_noise_is_float32_of_unit_variance():
    z = Noise([0, 1], (4, 64, 64))()
    assert z.dtype == torch.float32 and z.shape == (2, 4, 64, 64)
    assert abs(float(z.mean())) < 0.02 and abs(float(z.std()) - 1) < 0.02  # 32768 numbers: ± 0.006


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Noise([1], SHAPE)()
    assert torch.equal(torch.rand(3), expected)
