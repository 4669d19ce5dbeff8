"""Laws of the noise that CUDA draws, and its published figures."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.philox import THREADS, Philox, normal, philox

SHAPE = (4, 3, 5)
SEEDS = st.integers(0, 2**64 - 1)

# the lines "philox4x32 10" of tests/kat_vectors in Random123 (Salmon et al. 2011): counter, key, result
KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)

# stable-diffusion-webui, modules/rng_philox.py, docstring: torch.randn on CUDA, seed 0, shape (3, 4)
WEBUI = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]

# an emulation of ours, written apart from this one (torch 2.13.0, numpy 2.4.6): seed, shape, the first four
# numbers, the last two, the sum and the sum of magnitudes
EMULATED = (
    (0, (1, 4, 64, 64), [-0.9246624, -0.4253439, -2.643846, 0.1451839], [-0.4208331, -2.954316],
     -113.794, 13069.26),
    (0, (1, 4, 96, 96), [-0.9246624, -0.4253439, -2.643846, 0.1451839], [-1.176565, -1.227611],
     -136.726, 29346.11),
    (33, (4, 4, 64, 64), [0.1756016, 0.6355549, -0.6196133, 0.2199638], [1.980825, -0.8746758],
     -162.165, 52278.27),
    (47, (4, 4, 64, 64), [-1.045862, 0.2011127, 0.06114445, -0.938979], [0.211159, -0.1513426],
     606.945, 52301.81),
)  # fmt: skip

# diffusers v0.4.2 to v0.11.0, tests of the intermediate state on a GPU, seed 0: x[0, -3:, -3:, -1] after the
# first steps, where x is still noise for the most part; the second call is where an image took the first
DIFFUSERS = (
    # SD 1.4, text to image, the first of 50 steps
    ((1, 4, 64, 64), 0, [1.8285, 1.2857, -0.1024, 1.2406, -2.3068, 1.0747, -0.0818, -0.652, -2.9506], 0.999),
    # SD 2 base, text to image, the first of 20 steps
    ((1, 4, 64, 64), 0, [1.8606, 1.3169, -0.0691, 1.2374, -2.309, 1.077, -0.1084, -0.6774, -2.9594], 0.999),
    # SD 2, text to image, the first of 20 steps
    ((1, 4, 96, 96), 0, [-0.2543, -1.2755, 0.4261, -0.9555, -1.173, -0.5892, 2.4159, 0.1554, -1.2098], 0.999),
    # SD 1.4, repainting, the first of the last 37 of 50 steps
    ((1, 4, 64, 64), 4, [-0.5472, 1.1218, -0.5505, -0.939, -1.0794, 0.4063, 0.5158, 0.6429, -1.5246], 0.98),
    # SD 2 depth, the second of the last 37 of 50 steps
    ((1, 4, 60, 80), 4, [-0.7825, 0.5786, -0.9125, -0.9885, -1.0071, 2.7126, -0.849, 0.3776, -0.0791], 0.98),
)  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_words_its_authors_publish(counter, key, expected):
    counter, (k0, k1), expected = (
        [int(word, 16) for word in row.split()] for row in (counter, key, expected)
    )
    words = philox([np.array([word, 0], np.uint64) for word in counter], (k0, k1))
    assert [int(word[0]) for word in words] == expected


def test_noise_is_webuis():
    # its digits are of another log and sine in float32: one unit in the last place is 2.4e-7 from 2 on
    assert torch.allclose(normal(0, (3, 4)), torch.tensor(WEBUI), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("seed", "shape", "first", "last", "total", "size"), EMULATED)
def test_noise_is_that_of_another_emulation(seed, shape, first, last, total, size):
    z = normal(seed, shape).double().flatten()
    assert z[:4].tolist() == pytest.approx(first, abs=1e-6)
    assert z[-2:].tolist() == pytest.approx(last, abs=1e-6)
    assert float(z.sum()) == pytest.approx(total, abs=1e-3)
    assert float(z.abs().sum()) == pytest.approx(size, abs=1e-2)


@pytest.mark.parametrize(("shape", "offset", "published", "least"), DIFFUSERS)
def test_published_latents_of_a_gpu_begin_as_this_noise(shape, offset, published, least):
    z = normal(0, shape, offset)[0, -3:, -3:, -1].flatten()
    alike, other = (
        float(torch.corrcoef(torch.stack([noise, torch.tensor(published)]))[0, 1])
        for noise in (z, normal(0, shape, 8)[0, -3:, -3:, -1].flatten())
    )
    assert alike > least > 0.6 > abs(other)


def test_noise_is_float32_of_unit_variance():
    z = normal(7, (THREADS,))
    assert z.dtype == torch.float32 and z.device.type == "cpu"
    # four standard errors of 221184 numbers: mean 1, variance sqrt(2), fourth moment sqrt(96)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2**0.5), (4, 3, 96**0.5)):
        assert float(z.double().pow(power).mean()) == pytest.approx(moment, abs=4 * spread / THREADS**0.5)


def test_calls_and_seeds_share_nothing():
    noises = [normal(seed, (THREADS,), offset) for seed in (0, 1, 2**32) for offset in (0, 4, 2**34)]
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(len(noises))
    assert float(correlation.abs().max()) < 4.5 / THREADS**0.5


@given(SEEDS, st.integers(0, 2**62 - 1))
def test_a_number_depends_on_its_place_alone(seed, call):
    long = normal(seed, (60,), 4 * call)
    assert torch.equal(normal(seed, (4, 5), 4 * call).flatten(), long[:20])
    assert torch.equal(normal(seed, SHAPE, 4 * call), long.reshape(SHAPE))


@given(st.lists(SEEDS, min_size=1, max_size=5))
def test_each_image_has_the_noise_of_its_own_seed(seeds):
    noise = Philox(seeds, SHAPE)
    for offset in (0, 4, 8):
        assert torch.equal(noise(), torch.stack([normal(seed, SHAPE, offset) for seed in seeds]))


def test_a_call_may_ask_for_another_shape():
    noise = Philox([3], SHAPE)
    assert torch.equal(noise((1, 2, 2))[0], normal(3, (1, 2, 2)))
    assert torch.equal(noise()[0], normal(3, SHAPE, 4))


def test_all_threads_are_used_and_no_more():
    assert normal(0, (1, THREADS)).shape == (1, THREADS) and normal(0, (0, 3)).shape == (0, 3)
    with pytest.raises(InputError, match=f"4, 300, 300.* 360000 numbers.* {THREADS} "):
        normal(0, (4, 300, 300))


@pytest.mark.parametrize(
    ("seed", "offset", "words"),
    [
        (-1, 0, "seed must be from 0"),
        (2**64, 0, "seed must be from 0"),
        (0.5, 0, "seed must be a whole number"),
        (0, -4, "offset must be from 0"),
        (0, 2**64, "offset must be from 0"),
        (0, 1, "offset 1 is not a multiple of 4"),
    ],
)
def test_what_cannot_be_is_refused(seed, offset, words):
    with pytest.raises(InputError, match=words):
        normal(seed, SHAPE, offset)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", [0, 2**40 + 1])
def test_noise_is_that_of_cuda(seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    for offset in (0, 4, 8):
        assert generator.get_offset() == offset
        drawn = torch.randn((4, 64, 64), generator=generator, device="cuda").cpu()
        # __sincosf is off by 2^-21 or a little more, times sqrt(-2 ln u) < 7
        assert torch.allclose(normal(seed, (4, 64, 64), offset), drawn, rtol=0, atol=1e-5)
