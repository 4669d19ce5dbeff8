"""Fréchet and kernel distances: closed forms, invariances, other implementations, and what is refused."""

from math import sqrt

import numpy as np
import pytest
import scipy.linalg
import torch

from ldm.errors import InputError
from ldm.evaluation import KernelDistance, distances, frechet, frechet_of_moments, kernel_distance, mmd2

ROUNDING = 1e-9  # of float64, some hundred operations on


def rng(seed=0):
    return np.random.default_rng(seed)


def rows(n, d, seed=0, scale=1.0, shift=0.0):
    """Rows of a Gaussian whose directions are mixed and unlike."""
    mix = rng(d).normal(size=(d, d)) * np.linspace(0.3, 2, d)
    return shift + scale * rng(seed).normal(size=(n, d)) @ mix


def rotation(d, seed=5):
    return np.linalg.qr(rng(seed).normal(size=(d, d)))[0]


def moments(x, ddof=1):
    return x.mean(0), np.atleast_2d(np.cov(x, rowvar=False, ddof=ddof))


def by_scipy(m, a, w, b):
    return (m - w) @ (m - w) + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)


# Fréchet


def test_diagonal_covariances():
    m, w, s, t = rng().normal(size=(4, 6))
    found = frechet_of_moments(m, np.diag(s**2), w, np.diag(t**2))
    assert found == pytest.approx(((m - w) ** 2).sum() + ((abs(s) - abs(t)) ** 2).sum(), rel=ROUNDING)


def test_commuting_covariances():
    q, (s, t) = rotation(6), rng().uniform(0, 3, (2, 6))
    m, w = np.zeros(6), np.ones(6)
    a, b = (q * s**2 @ q.T, q * t**2 @ q.T)
    assert frechet_of_moments(m, a, w, b) == pytest.approx(6 + ((s - t) ** 2).sum(), rel=ROUNDING)


def test_one_dimension():
    a, b = rows(40, 1), rows(30, 1, seed=1, scale=3, shift=2)
    wanted = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet(a, b) == pytest.approx(wanted, rel=ROUNDING)


def test_a_hand_made_example():
    # means (1, 0) and (1, 3); covariances diag(2, 0) and diag(0, 8), whose product is 0
    a, b = np.array([[0.0, 0], [2, 0]]), np.array([[1.0, 1], [1, 5]])
    assert frechet(a, b) == pytest.approx(9 + 2 + 8, rel=ROUNDING)


@pytest.mark.parametrize(("n", "m"), [(60, 50), (1000, 30)])
def test_other_directions_are_as_scipy_has_them(n, m):
    a, b = rows(n, 12), rows(m, 12, seed=1, scale=1.3, shift=0.4) @ rotation(12)
    (p, c), (q, d) = moments(a), moments(b)
    wanted = by_scipy(p, c, q, d)
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-8)  # sqrtm knows 8 digits of its smallest values
    assert frechet_of_moments(p, c, q, d) == pytest.approx(wanted, rel=1e-8)
    # and this would notice n for n - 1, a forgotten mean, and A^½ B^½ for (A B)^½
    (_, c0), (_, d0) = moments(a, ddof=0), moments(b, ddof=0)
    split = np.trace(c + d - 2 * scipy.linalg.sqrtm(c).real @ scipy.linalg.sqrtm(d).real)
    for wrong in (by_scipy(p, c0, q, d0), by_scipy(p, c, p, d), (p - q) @ (p - q) + split):
        assert abs(wrong / wanted - 1) > 1e-3


def test_fewer_rows_than_numbers():
    """Rows of 5 numbers laid into 40 by an isometry are as far apart, though covariances are singular."""
    a, b = rows(30, 5), rows(20, 5, seed=1, shift=1)
    way = rotation(40)[:5]
    assert frechet(a @ way, b @ way) == pytest.approx(frechet(a, b), rel=ROUNDING)
    (p, c), (q, d) = moments(a @ way), moments(b @ way)
    assert frechet_of_moments(p, c, q, d) == pytest.approx(
        frechet(a, b), rel=1e-6
    )  # √ of 1e-16 stays of zero
    two, three = rows(2, 300), rows(3, 300, seed=1)
    assert np.isfinite(frechet(two, three)) and frechet(two, three) > 0


@pytest.mark.parametrize(("n", "d"), [(200, 10), (10, 200), (2, 1), (50, 50)])
def test_equal_sets_have_none(n, d):
    a = rows(n, d)
    size = a.var(0, ddof=1).sum()
    assert 0 <= frechet(a, a) <= ROUNDING * size
    assert 0 <= frechet(a, a[::-1]) <= ROUNDING * size
    assert frechet(a, a + 0.1) > 1e-3  # d times 0.01


def test_a_rotation_and_a_shift_of_both_change_nothing():
    a, b = rows(50, 8), rows(40, 8, seed=1, scale=0.5)
    moved = frechet(a @ rotation(8) + 3, b @ rotation(8) + 3)
    assert moved == pytest.approx(frechet(a, b), rel=ROUNDING)
    assert frechet(a @ rotation(8), b) != pytest.approx(frechet(a, b), rel=0.01)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=ROUNDING)
    assert frechet(3 * a, 3 * b) == pytest.approx(9 * frechet(a, b), rel=ROUNDING)


def test_its_bias_falls_as_the_rows_grow():
    """Two sets of n rows of one Gaussian are apart, and half as much with 2 n rows, to first order."""
    means = [np.mean([frechet(*rng(i).normal(size=(2, n, 6))) for i in range(300)]) for n in (100, 200)]
    assert means[0] / means[1] == pytest.approx(2, rel=0.1)


def test_every_kind_of_number_is_taken():
    a, b = rows(30, 4), rows(30, 4, seed=1)
    wanted = frechet(a, b)
    turned = np.asfortranarray(a).astype(">f8")
    turned.setflags(write=False)
    assert frechet(turned, torch.from_numpy(b).requires_grad_()) == wanted
    assert frechet(torch.from_numpy(a).float(), b.astype(np.float32)) == pytest.approx(wanted, rel=1e-5)
    assert frechet(np.array([[0], [2]], np.uint8), np.array([[5], [7]])) == pytest.approx(25, rel=ROUNDING)
    assert frechet(np.full((2, 1), 1e38) * [[1], [2]], np.zeros((2, 1))) > 1e76  # no overflow of float32


# kernel


def by_loops(a, b):
    def k(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def mean(pairs):
        values = [k(x, y) for x, y in pairs]
        return sum(values) / len(values)

    def others(x):
        return [(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]

    return mean(others(a)) + mean(others(b)) - 2 * mean([(x, y) for x in a for y in b])


def biased(a, b):
    def k(x, y):
        return ((x @ y.T / x.shape[1] + 1) ** 3).mean()

    return k(a, a) + k(b, b) - 2 * k(a, b)


def test_a_hand_made_kernel_example():
    # d = 1: k(0, 1) = 1 and k(2, 3) = 7³; k(0, 2) = k(0, 3) = 1, k(1, 2) = 3³, k(1, 3) = 4³
    assert mmd2(np.array([[0.0], [1]]), np.array([[2.0], [3]])) == pytest.approx(1 + 343 - 2 * 93 / 4)


def test_mmd_is_what_two_loops_say(monkeypatch):
    a, b = rows(13, 4), rows(9, 4, seed=1, shift=0.3)
    wanted = by_loops(a.tolist(), b.tolist())
    assert mmd2(a, b) == pytest.approx(wanted, rel=ROUNDING)
    assert mmd2(b, a) == pytest.approx(wanted, rel=ROUNDING)
    assert abs(biased(a, b) / wanted - 1) > 0.01  # it would notice the diagonal
    monkeypatch.setattr(distances, "CHUNK", 4)
    assert mmd2(a, b) == pytest.approx(wanted, rel=ROUNDING)


def mean_and_error(values):
    return np.mean(values), np.std(values) / sqrt(len(values))


def test_of_one_distribution_it_is_zero_on_average():
    draws = [rng(i).normal(size=(2, 12, 3)) for i in range(2000)]
    mean, error = mean_and_error([mmd2(a, b) for a, b in draws])
    assert abs(mean) < 4 * error  # a chance of 1 in 16000 with another seed
    mean, error = mean_and_error([biased(a, b) for a, b in draws])
    assert mean > 20 * error  # with the diagonal it is not


def test_of_two_gaussians_it_is_what_their_moments_say():
    """k = 1 + 3 x y + 3 x² y² + x³ y³, so 3 Δ₁² + 3 Δ₂² + Δ₃² of the moments (0, 1, 0) and (1, 2, 4)."""
    draws = [rng(i).normal(size=(2, 30, 1)) for i in range(2000)]
    mean, error = mean_and_error([mmd2(a, b + 1) for a, b in draws])
    assert abs(mean - 22) < 4 * error and error < 1


def test_subsets_say_on_average_what_all_rows_say():
    """The mean of a U-statistic over all subsets is that of the whole."""
    a, b = rows(80, 5), rows(60, 5, seed=1, scale=1.2)
    found = kernel_distance(a, b, subsets=400, size=20)
    assert abs(found.mean - mmd2(a, b)) < 4 * found.std / sqrt(400)
    assert found.std > 0 and isinstance(found, KernelDistance)


def test_subsets_depend_on_the_seed_alone():
    a, b = rows(50, 3), rows(50, 3, seed=1)
    first, again, other = (kernel_distance(a, b, subsets=5, size=10, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_subset_of_all_is_all():
    a, b = rows(30, 3), rows(30, 3, seed=1, shift=1)
    mean, std = kernel_distance(a, b, subsets=3, size=30)
    assert mean == pytest.approx(mmd2(a, b), rel=ROUNDING) and std < ROUNDING * mean


# what is refused

GOOD = np.eye(3)
ODD = {
    "a list": ([[1.0, 2.0]], r"a must be a table \[n d\] of real numbers, not \[\[1.0, 2.0\]\]"),
    "a vector": (np.ones(3), r"a must be a table .* not an array \(3,\)"),
    "three axes": (torch.ones(2, 3, 1), r"a must be a table .* not a tensor \(2, 3, 1\)"),
    "complex": (np.ones((2, 3), complex), "complex128"),
    "texts": (np.array([["1", "2", "3"]] * 2), "a must be a table"),
    "no rows": (np.ones((0, 3)), r"a is empty, a table \[n d\] of \(0, 3\)"),
    "no numbers": (np.ones((3, 0)), "a is empty"),
    "one row": (np.ones((1, 3)), "a has 1 row, but 2 are the least"),
    "other width": (np.ones((3, 4)), "a has 4 numbers in a row and b 3"),
    "nan": (np.where(np.eye(3) > 0, np.nan, 1), r"a: 3 of 9 numbers are NaN, .* the first at \[0, 0\]"),
    "infinite": (torch.tensor([[1.0, 1, 1], [1, torch.inf, 1]]), r"a: 1 of 6 numbers .* at \[1, 1\]"),
    "huge": (np.full((2, 3), 1e50), "beyond ±1e"),
}


@pytest.mark.parametrize("measure", [frechet, mmd2, lambda a, b: kernel_distance(a, b, subsets=1, size=2)])
@pytest.mark.parametrize(("value", "sentence"), ODD.values(), ids=ODD)
def test_what_is_no_table_of_features_is_refused(measure, value, sentence):
    with pytest.raises(InputError, match=sentence):
        measure(value, GOOD)
    if "a has 4" not in sentence:
        with pytest.raises(InputError, match=sentence.replace("a", "b", 1)):
            measure(GOOD, value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 5}, "a has 3 rows, fewer than size 5"),
        ({"size": 1}, "size must be from 2"),
        ({"size": 2, "subsets": 0}, "subsets must be from 1"),
        ({"size": 2, "seed": -1}, "seed must be from 0"),
        ({"size": 2.5}, "size must be a whole number"),
        ({}, "a has 3 rows, fewer than size 1000"),
    ],
)
def test_subsets_that_cannot_be_drawn_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        kernel_distance(GOOD, GOOD, **options)


@pytest.mark.parametrize(
    ("which", "value", "sentence"),
    [
        (0, np.ones((3, 1)), r"mean_a must be a vector \[d\]"),
        (0, np.ones(4), r"cov_a must be \[4 4\], as its mean has 4 numbers, not \[3, 3\]"),
        (1, np.ones((3, 2)), r"cov_a must be \[3 3\]"),
        (1, np.diag([1, 1, -0.1]), "cov_a has the eigenvalue -0.1"),
        (1, np.triu(np.ones((3, 3))), "cov_a is not symmetric"),
        (2, np.array([1, np.nan, 1]), "mean_b: 1 of 3 numbers are NaN"),
        (3, np.full((3, 3), np.inf), "cov_b: 9 of 9 numbers"),
    ],
)
def test_what_are_no_moments_is_refused(which, value, sentence):
    told = [np.ones(3), GOOD, np.ones(3), GOOD]
    told[which] = value
    with pytest.raises(InputError, match=sentence):
        frechet_of_moments(*told)


def test_moments_of_two_widths_are_refused():
    with pytest.raises(InputError, match="mean_a has 3 numbers and mean_b 2"):
        frechet_of_moments(np.ones(3), GOOD, np.ones(2), np.eye(2))


def test_rounding_of_a_covariance_is_borne():
    """A singular covariance in float32 has eigenvalues a little below zero."""
    a, b = rows(6, 20), rows(6, 20, seed=1)
    rounded = [part.astype(np.float32) for part in (*moments(a), *moments(b))]
    assert np.linalg.eigvalsh(rounded[1]).min() < 0
    # each of 20 directions may keep √1e-7 of the largest
    assert frechet_of_moments(*rounded) == pytest.approx(frechet(a, b), rel=20 * sqrt(1e-7))
