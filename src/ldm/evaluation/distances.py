"""How far apart two sets of features are. Rows are images; m and A are the mean and covariance of one set's
rows, w and B those of the other's.

    Fréchet   |m - w|² + tr(A + B - 2 (A B)^½)                               (Heusel et al. 2017, eq. 6)
    kernel    E k(x, x') + E k(y, y') - 2 E k(x, y),   x ≠ x', y ≠ y'        (Gretton et al. 2012, eq. 3)
              k(x, y) = (x·y / d + 1)³                                       (Bińkowski et al. 2018)

The root of A B is never taken. With A = Fᵀ F and B = Gᵀ G its trace is the sum of the singular values of
F Gᵀ, for their squares are the eigenvalues of A B, and of the symmetric A^½ B A^½: real and not negative,
however few rows there are. All is computed in float64 on the CPU.
"""

from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.checks import plain, shown, whole
from ldm.errors import InputError

MOST = 1e40  # of a feature's size; its sixth power, summed, still is a number
MOST_SUBSETS = 1_000_000
MOST_ROWS = 2**31
MOST_SEED = 2**63 - 1
SLACK = 1e-6  # of the largest eigenvalue: what rounding in float32 may take a covariance's others below zero
CHUNK = 2048  # rows of a table of kernels


class KernelDistance(NamedTuple):
    """What subsets say of the kernel distance."""

    mean: float  # over the subsets
    std: float  # from subset to subset, over their number, not one less


def frechet(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """The Fréchet distance, squared, of the Gaussians with two sets' moments (Heusel et al. 2017, eq. 6).

    a, b  [n d] and [m d], features of two rows or more each, be they fewer than d or not
    Covariances are divided by n - 1. In the features' units, squared; 0 or more. Of few rows it is too large,
    by what falls as 1 / n (Chong and Forsyth 2020). Raises InputError for other shapes and widths, for one
    row, and for numbers that are not finite.
    """
    x, y = pair(a, b, least=2)
    (m, f), (w, g) = (moments(rows) for rows in (x, y))
    return distance(m, f, w, g)


def frechet_of_moments(
    mean_a: Tensor | np.ndarray, cov_a: Tensor | np.ndarray,
    mean_b: Tensor | np.ndarray, cov_b: Tensor | np.ndarray,
) -> float:  # fmt: skip
    """The Fréchet distance, squared, of two Gaussians (Heusel et al. 2017, eq. 6; Dowson and Landau 1982).

    mean_a, mean_b  [d]
    cov_a, cov_b    [d d], symmetric, with no eigenvalue below zero but for rounding
    Raises InputError for anything else.
    """
    m, w = (numbers(name, mean, 1) for name, mean in (("mean_a", mean_a), ("mean_b", mean_b)))
    f, g = factor("cov_a", cov_a, len(m)), factor("cov_b", cov_b, len(w))
    if m.shape != w.shape:
        raise InputError(f"mean_a has {len(m)} numbers and mean_b {len(w)}; both must be of one kind")
    return distance(m, f, w, g)


def mmd2(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """The squared maximum mean discrepancy of all rows, unbiased (Gretton et al. 2012, eq. 3).

    a, b  [n d] and [m d], features of two rows or more each
    k(x, y) = (x·y / d + 1)³. Sets of one distribution give 0 on average, so about half of them less.
    Raises InputError as `frechet` does.
    """
    return discrepancy(*pair(a, b, least=2))


def kernel_distance(
    a: Tensor | np.ndarray, b: Tensor | np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The kernel distance: `mmd2` of random subsets, its mean and deviation (Bińkowski et al. 2018).

    a, b     [n d] and [m d], features; n and m are `size` or more
    subsets  pairs of subsets that are drawn; rows are drawn without repeating one
    size     rows of each; where it is n and m, all subsets are the same, and std is nothing but rounding
    seed     of the draws, 0 to 2^63 - 1
    Raises InputError as `frechet` does, and for fewer rows than `size`.
    """
    check_draws(subsets, size, seed)
    rng = np.random.default_rng(seed)
    x, y = pair(a, b, least=2)
    for name, rows in (("a", x), ("b", y)):
        if len(rows) < size:
            raise InputError(f"{name} has {len(rows)} rows, fewer than size {size}; give more, or lower it")
    found = [
        discrepancy(*(rows[rng.choice(len(rows), size, replace=False)] for rows in (x, y)))
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(found)), float(np.std(found)))


def check_draws(subsets: int, size: int, seed: int) -> None:
    """Raises InputError for subsets that nobody can draw."""
    whole("subsets", subsets, MOST_SUBSETS)
    whole("size", size, MOST_ROWS, least=2)
    whole("seed", seed, MOST_SEED, least=0)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [d] of rows [n d], and a factor F [k d] of their covariance Fᵀ F, k the lesser of n and d."""
    mean = x.mean(0)
    centred = (x - mean) / sqrt(len(x) - 1)
    return mean, torch.linalg.qr(centred, mode="r").R


def factor(name: str, cov: Any, d: int) -> Tensor:
    """F [d d] with Fᵀ F = cov. Raises InputError for what is no covariance."""
    c = numbers(name, cov, 2)
    if c.shape != (d, d):
        raise InputError(f"{name} must be [{d} {d}], as its mean has {d} numbers, not {list(c.shape)}")
    values, vectors = torch.linalg.eigh((c + c.T) / 2)
    most = float(values.abs().max())
    if (c - c.T).abs().max() > SLACK * most:
        raise InputError(f"{name} is not symmetric, so it is no covariance; give that of the features")
    if values[0] < -SLACK * most:
        raise InputError(
            f"{name} has the eigenvalue {float(values[0]):.3g}, but a covariance has none below 0"
        )
    return values.clamp_min(0).sqrt()[:, None] * vectors.T


def distance(m: Tensor, f: Tensor, w: Tensor, g: Tensor) -> float:
    """Eq. 6 of means [d] and factors [k d] of covariances: tr A is |F|², tr (A B)^½ the sum below."""
    root = torch.linalg.svdvals(f @ g.T).sum()
    found = (m - w).square().sum() + f.square().sum() + g.square().sum() - 2 * root
    return max(0.0, float(found))  # rounding may take equal sets below


def discrepancy(x: Tensor, y: Tensor) -> float:
    """mmd2 of checked rows."""
    n, m = len(x), len(y)
    same = [(kernels(rows, rows) - own(rows)) / (k * (k - 1)) for rows, k in ((x, n), (y, m))]
    return sum(same) - 2 * kernels(x, y) / (n * m)


def kernels(x: Tensor, y: Tensor) -> float:
    """The sum of k over all pairs of rows [n d] and [m d]."""
    d = x.shape[1]
    return sum(float((part @ y.T / d + 1).pow(3).sum()) for part in x.split(CHUNK))


def own(x: Tensor) -> float:
    """The sum of k of every row with itself."""
    return float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())


def pair(a: Any, b: Any, least: int) -> tuple[Tensor, Tensor]:
    """Two sets of features as float64, of one width and of `least` rows. Raises InputError."""
    x, y = numbers("a", a, 2), numbers("b", b, 2)
    for name, rows in (("a", x), ("b", y)):
        if len(rows) < least:
            raise InputError(f"{name} has {len(rows)} row, but {least} are the least; give more images")
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"a has {x.shape[1]} numbers in a row and b {y.shape[1]}; both must be features of one kind"
        )
    return x, y


def numbers(name: str, value: Any, axes: int) -> Tensor:
    """An array or tensor of so many axes, none of them empty, as float64. Raises InputError."""
    wanted = {1: "a vector [d]", 2: "a table [n d]"}[axes]
    if not (isinstance(value, (np.ndarray, Tensor)) and plain(value) and value.ndim == axes):
        raise InputError(f"{name} must be {wanted} of real numbers, not {shown(value)}")
    if 0 in value.shape:
        raise InputError(f"{name} is empty, {wanted} of {tuple(value.shape)}; give some rows")
    if isinstance(value, Tensor):
        x = value.detach().to("cpu", torch.float64)
    else:  # a copy, because the array may be read-only, turned round or of another byte order
        x = torch.from_numpy(np.array(value, np.float64, order="C"))
    bad = ~(x.abs() <= MOST)
    if bad.any():
        first = bad.nonzero()[0].tolist()
        raise InputError(
            f"{name}: {int(bad.sum())} of {x.numel()} numbers are NaN, infinite or beyond ±{MOST:g}, the "
            f"first at {first}; leave such images out"
        )
    return x
