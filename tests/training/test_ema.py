"""Laws of the running mean of the weights."""

import pytest
import torch
from torch import nn

from ldm.errors import InputError
from ldm.training import Average
from tests.tiny import randomise, same


def net(seed=0, dtype=torch.float32):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    return randomise(model, seed).to(dtype)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def run(decay, steps):
    """An average over nets of seeds 0 (its beginning), 1, …, steps."""
    average = Average(net(0), decay)
    for step in range(1, steps + 1):
        average.update(net(step), step)
    return average


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_the_mean_is_the_explicit_sum(decay):
    """d_1 … d_n w_0 + sum_k (1 - d_k) d_{k+1} … d_n w_k, with d_k = min(decay, (1 + k) / (10 + k))."""
    n = 12
    d = [min(decay, (1 + k) / (10 + k)) for k in range(n + 1)]
    shares = [1.0 if k == 0 else 1 - d[k] for k in range(n + 1)]
    for k in range(n + 1):
        for later in range(k + 1, n + 1):
            shares[k] *= d[later]
    assert sum(shares) == pytest.approx(1)
    average, nets = run(decay, n), [weights(net(k)) for k in range(n + 1)]
    for name, mean in average.shadow.items():
        expected = sum(share * w[name].double() for share, w in zip(shares, nets, strict=True))
        assert torch.allclose(mean.double(), expected, atol=1e-6)


def test_the_first_decay_is_two_elevenths_and_the_last_the_one_asked_for():
    average = Average(nn.Linear(1, 1, bias=False), 0.99)
    model = nn.Linear(1, 1, bias=False)
    for step, d in ((1, 2 / 11), (2, 3 / 12), (10_000, 0.99)):
        average.shadow["weight"].fill_(1.0)
        nn.init.zeros_(model.weight)
        average.update(model, step)
        assert float(average.shadow["weight"]) == pytest.approx(d) and average.count == step


def test_only_what_is_trained_is_averaged():
    assert set(run(0.9, 1).shadow) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}


def test_small_changes_of_a_half_precision_model_are_not_lost():
    """In bfloat16, 1 + 0.001 (1.0078 - 1) is 1; the shadow is float32."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    average = Average(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(1.0078125)
    average.update(model, 10**6)
    assert average.shadow["weight"].dtype == torch.float32
    assert float(average.shadow["weight"]) == pytest.approx(1 + 0.001 * 0.0078125, abs=1e-7)


def test_updating_leaves_the_model_alone():
    model = net(0)
    average = Average(model, 0.5)
    with torch.no_grad():
        model[0].weight.fill_(7)
    assert not (average.shadow["0.weight"] == 7).any()
    before = weights(model)
    average.update(model, 1)
    assert same(before, weights(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_puts_the_means_in_and_the_weights_back(dtype):
    average, model = run(0.9, 5), net(9, dtype)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")  # even these
    before = weights(model)
    with average.swapped(model):
        inside = weights(model)
        assert all(torch.equal(inside[name], mean.to(dtype)) for name, mean in average.shadow.items())
        assert torch.equal(inside["2.bias"], before["2.bias"])
    assert same(before, weights(model)) and not same(before, inside)


def test_the_weights_are_back_after_an_error():
    average, model = run(0.9, 5), net(9)
    before = weights(model)
    with pytest.raises(KeyError), average.swapped(model):
        raise KeyError
    assert same(before, weights(model))


def test_copy_to_keeps_them():
    average, model = run(0.9, 5), net(9)
    average.copy_to(model)
    assert all(torch.equal(weights(model)[name], mean) for name, mean in average.shadow.items())


def test_an_average_goes_on_from_its_state_bit_for_bit():
    whole, half, other = run(0.9, 8), run(0.9, 4), Average(net(77), 0.9)
    state = {name: value.clone() for name, value in half.state().items()}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other.load(state)
    assert other.count == 4
    for step in range(5, 9):
        other.update(net(step), step)
    assert same(other.state(), whole.state())


def test_another_model_is_refused_by_the_name_of_its_parameter():
    average = run(0.9, 1)
    with pytest.raises(InputError, match=r"parameter 0\.bias is averaged, and missing"):
        average.update(nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2)), 2)
    wide = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"parameter 2\.bias is not averaged"):
        average.copy_to(wide)
    wide[2] = nn.Linear(4, 3, bias=False)
    with pytest.raises(InputError, match=r"parameter 2\.weight is \[3, 4\] here, not \[2, 4\]"):
        average.copy_to(wide)


def test_a_state_without_count_is_refused():
    average = run(0.9, 1)
    state = average.state()
    del state["count"]
    with pytest.raises(InputError, match="no count"):
        average.load(state)


def test_a_state_that_lacks_a_tensor_changes_nothing():
    average = run(0.9, 1)
    before = {name: value.clone() for name, value in average.state().items()}
    state = run(0.9, 3).state()
    del state["shadow.2.weight"]
    with pytest.raises(InputError, match=r"2\.weight is averaged, and missing"):
        average.load(state)
    assert same(before, average.state())


@pytest.mark.parametrize("decay", [-0.1, 1.1, None])
def test_a_decay_is_from_0_to_1(decay):
    with pytest.raises(InputError, match="decay must be"):
        Average(net(), decay)
