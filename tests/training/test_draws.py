"""Laws of what a training step draws."""

import pytest
import torch

from ldm.errors import InputError
from ldm.schedulers import Schedule
from ldm.training import dropped, logit_normal, offset, stratified, times
from tests.tiny import unit_noise

MANY = 200_000


def uniform_numbers(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [7, 1000])
def test_every_step_is_equally_likely(steps):
    u = (torch.arange(steps * 100, dtype=torch.float64) + 0.5) / (steps * 100)
    assert torch.bincount(times(u, Schedule(steps=steps))).tolist() == [100] * steps


def test_times_have_both_ends_and_no_more():
    t = times(torch.tensor([0.0, 1 - 2**-24, 1.0]), Schedule())
    assert t.tolist() == [0, 999, 999] and t.dtype == torch.int64


def test_stratified_numbers_are_one_in_each_part_and_uniform():
    u = torch.stack([stratified(uniform_numbers(8, seed)) for seed in range(2000)])
    assert ((u * 8).long() == torch.arange(8)).all()
    within = u * 8 - torch.arange(8)
    # a mean of 16000 uniform numbers: 0.5 ± 4 × 0.0023
    assert float(within.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(within.std()) == pytest.approx(12**-0.5, abs=0.01)
    assert float(u.mean(dim=1).std()) < 0.2 * float(uniform_numbers(MANY).reshape(-1, 8).mean(dim=1).std())


@pytest.mark.parametrize("mean, deviation", [(0.0, 1.0), (0.5, 0.7)])
def test_the_logit_of_a_logit_normal_is_normal(mean, deviation):
    logits = torch.logit(logit_normal(uniform_numbers(MANY).double(), mean, deviation))
    # deviation / sqrt(200000) is 0.002; four of them
    assert float(logits.mean()) == pytest.approx(mean, abs=0.01)
    assert float(logits.std()) == pytest.approx(deviation, abs=0.01)
    shares = [float((logits < mean + k * deviation).double().mean()) for k in (-1, 0, 2)]
    assert shares == pytest.approx([0.1587, 0.5, 0.9772], abs=0.005)  # of the normal distribution


def test_logit_normal_numbers_are_times_even_at_the_ends():
    assert times(logit_normal(torch.tensor([0.0, 0.5, 1.0])), Schedule()).tolist() == [0, 500, 999]


def test_offset_noise_has_the_covariance_it_says():
    """Numbers of one channel of one image: variance 1 + strength², covariance strength²; none across."""
    eps, draws = unit_noise(0, 20_000, 2, 1, 2), unit_noise(1, 20_000, 2)
    found = offset(eps, draws, 0.5).reshape(-1, 4).double().T.cov()
    expected = torch.eye(4, dtype=torch.float64) + 0.25 * torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    # a covariance of 20000: ± 0.009; four of them
    assert float((found - expected).abs().max()) < 0.04


def test_offset_noise_is_eps_plus_strength_times_draws():
    eps, draws = unit_noise(0, 2, 3, 4, 5), unit_noise(1, 2, 3)
    found = offset(eps, draws, 0.1)
    assert torch.equal(found[1, 2], eps[1, 2] + 0.1 * draws[1, 2]) and torch.equal(offset(eps, draws, 0), eps)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 3, 1, 1)])
def test_offset_noise_needs_one_draw_for_each_channel(shape):
    with pytest.raises(InputError, match="draws must be"):
        offset(torch.zeros(2, 3, 4, 5), torch.zeros(shape), 0.1)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_so_many_texts_are_dropped(share):
    u = (torch.arange(1000) + 0.5) / 1000
    assert int(dropped(u, share).sum()) == round(1000 * share)


def test_none_are_dropped_with_share_0_even_for_a_draw_of_0():
    assert dropped(torch.zeros(1), 0.0).tolist() == [False]


def test_where_texts_are_dropped_the_empty_one_stands():
    context, empty = unit_noise(0, 3, 4, 5), torch.zeros(1, 4, 5)
    mixed = torch.where(dropped(torch.tensor([0.05, 0.5, 0.01]), 0.1)[:, None, None], empty, context)
    assert torch.equal(mixed[1], context[1]) and not mixed[0].any() and not mixed[2].any()


@pytest.mark.parametrize("u", [torch.tensor([-0.1]), torch.tensor([1.1]), torch.tensor([float("nan")]),
                               torch.tensor([1]), torch.rand(2, 2), 0.5, [0.5]])  # fmt: skip
def test_only_uniform_numbers_are_taken(u):
    for draw in (lambda u: times(u, Schedule()), stratified, logit_normal, lambda u: dropped(u, 0.1)):
        with pytest.raises(InputError, match="u must be"):
            draw(u)


@pytest.mark.parametrize("share", [-0.1, 1.1, None])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(InputError, match="share must be"):
        dropped(torch.zeros(1), share)
