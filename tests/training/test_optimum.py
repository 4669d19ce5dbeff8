"""What the diffusion loss teaches: its optimum is the exact denoiser, and a small network finds it."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian, jacobian

from ldm.oracle import GaussianMixture
from ldm.schedulers import CLEAN, EPS, X0, Schedule, V
from ldm.training import Average, ByTime, debiased, diffusion_loss, min_snr, rate, stratified, times, uniform
from tests.tiny import unit_noise

SCHEDULE, MIXTURE = Schedule(), GaussianMixture()
PREDICTIONS = (EPS, V, X0)
ids = lambda each: each.name  # noqa: E731


@cache
def data(oracle, count, side, seed=0):
    """[count 1 side side], numbers of the mixture."""
    return oracle.draw(unit_noise(seed, count, 1, side, side).double(), CLEAN).float()


def words(x0, x, level, prediction):
    """A clean latent in the words of a prediction."""
    return prediction.target(x0, (x - level.alpha * x0) / level.sigma, level)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=ids)
@pytest.mark.parametrize("t", [20, 400, 900])
def test_the_best_straight_line_for_gaussian_data_is_the_oracle(prediction, t):
    """predict = a x + b: the loss is quadratic, so one Newton step finds its minimum."""
    oracle, level = GaussianMixture((1.0,), (0.4,), (0.5,)), SCHEDULE.at(t)
    x0, eps = data(oracle, 200, 32), unit_noise(1, 200, 1, 32, 32)
    steps = torch.full((200,), t)

    def loss(line):
        predict = lambda x, t: line[0] * x + line[1]  # noqa: E731
        return diffusion_loss(predict, x0, eps, steps, SCHEDULE, prediction).mean()

    start = torch.zeros(2)
    slope, bend = jacobian(loss, start), hessian(loss, start)
    a, b = (start - torch.linalg.solve(bend, slope)).tolist()
    ends = torch.tensor([-1.0, 0.0, 2.0])
    exact = words(oracle(ends, level), ends, level, prediction)
    # 204800 numbers of unit size: a and b ± 0.0022, and x up to 2; four of them
    assert (a * ends + b).tolist() == pytest.approx(exact.tolist(), abs=0.02)


def leaning(oracle, prediction, weight, t, bump):
    """How the loss changes as what the oracle says is moved by `bump(x)`, in standard errors of its mean."""
    level, steps = SCHEDULE.at(t), torch.full((400,), t)
    x0, eps = data(MIXTURE, 400, 16), unit_noise(1, 400, 1, 16, 16)

    def losses(share):
        def predict(x, t):
            return words(oracle(x, level), x, level, prediction) + share * bump(x)

        return diffusion_loss(predict, x0, eps, steps, SCHEDULE, prediction, weight)

    slopes = (losses(0.5) - losses(-0.5)).double()  # of a parabola this is the slope between
    return float(slopes.mean() / (slopes.std() / len(slopes) ** 0.5))


BUMPS = (torch.ones_like, torch.sin, torch.tanh, torch.square)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=ids)
@pytest.mark.parametrize("weight", [uniform, min_snr, debiased])
def test_nothing_said_otherwise_than_by_the_oracle_is_better(prediction, weight):
    """Standard errors of the slopes: 12 of them within 4 but for one time in 1300."""
    for t in (50, 400, 800):
        assert all(abs(leaning(MIXTURE, prediction, weight, t, bump)) < 4 for bump in BUMPS)


@pytest.mark.parametrize("wrong", [GaussianMixture(means=(-1.0, 0.7)), GaussianMixture(weights=(0.4, 0.6))])
def test_a_wrong_oracle_can_be_bettered(wrong):
    assert max(abs(leaning(wrong, V, uniform, 400, bump)) for bump in BUMPS) > 8


class Net(nn.Module):
    """Two layers on each number by itself, told t as waves. x [b 1 h w], t [b] -> [b 1 h w]."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv2d(10, 64, 1), nn.Conv2d(64, 1, 1)
        nn.init.normal_(self.inner.weight)  # wide: the denoiser bends sharply where there is little noise

    def forward(self, x, t):
        angles = torch.pi * t.reshape(-1, 1, 1, 1) / 1000 * torch.arange(1, 5).reshape(1, 4, 1, 1)
        told = torch.cat([angles.cos(), angles.sin(), angles / 3], dim=1)[:, :9].expand(-1, -1, *x.shape[2:])
        return self.outer(F.silu(self.inner(torch.cat([x, told], dim=1))))


def excess(predict, t):
    """The loss at t of what is said, beyond the oracle's, on fixed data."""
    level, steps = SCHEDULE.at(t), torch.full((64,), t)
    x0, eps = data(MIXTURE, 64, 16, seed=2), unit_noise(3, 64, 1, 16, 16)
    oracle = lambda x, t: words(MIXTURE(x, level), x, level, V)  # noqa: E731
    found, least = (diffusion_loss(each, x0, eps, steps, SCHEDULE, V).mean() for each in (predict, oracle))
    return float(found - least)


def test_a_small_network_learns_the_oracle():
    """What is left of the loss of a loop with all that belongs to it is the oracle's own, and no less."""
    torch.manual_seed(0)
    net, pool, steps, batch = Net(), data(MIXTURE, 256, 8), 400, 64
    average, first, last = Average(net, 0.98), ByTime(SCHEDULE, 4), ByTime(SCHEDULE, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate("cosine", steps, warmup=20))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        before = [excess(net, t) for t in (100, 400, 700)]
    for step in range(1, steps + 1):
        x0 = pool[torch.randint(256, (batch,), generator=generator)]
        eps = torch.randn(x0.shape, generator=generator)
        t = times(stratified(torch.rand(batch, generator=generator)), SCHEDULE)
        losses = diffusion_loss(net, x0, eps, t, SCHEDULE, V)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        scheduler.step()
        average.update(net, step)
        if step <= 10 or step > steps - 10:
            (first if step <= 10 else last).add(t, losses)
    with torch.no_grad(), average.swapped(net):
        after = [excess(net, t) for t in (100, 400, 700)]
    assert last.means()[0] < 0.9 * first.means()[0]  # near noise all of v is chance from the beginning
    shares = [a / b for a, b in zip(after, before, strict=True)]
    assert shares[0] < 0.4 and max(shares[1:]) < 0.05
