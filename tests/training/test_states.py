"""The state of a run as tensors and JSON, and back exactly: optimisers, generators, whatever is nested."""

import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from muon import Muon
from torch import nn

from ldm import CheckpointError, InputError, NumericError
from ldm.training.checkpoints import load, save
from ldm.training.states import (
    flatten,
    flatten_optimiser,
    random_states,
    restore_optimiser,
    restored,
    set_random_states,
)


class Odd(torch.optim.Optimizer):
    """An optimiser of our own, with all kinds of things in its state."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "schedule": [("a", 1), None], "nested": {"b": {1: (True, 2.5)}}})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                slot = self.state[p]
                slot["count"] = slot.get("count", 0) + 1
                slot["history"] = [*slot.get("history", []), p.grad.clone()][-3:]
                slot["best"] = min(slot.get("best", 1e300), float(p.grad.norm()))
                slot["half"] = p.grad.to(torch.bfloat16)
                slot[3] = {"a.b": p.grad * 2, "a": {"b": p.grad * 3}}
                p.sub_(sum(slot["history"]), alpha=group["lr"] / slot["count"])
                p.sub_(slot[3]["a.b"] - slot[3]["a"]["b"], alpha=slot["best"])


MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adam tensor lr": lambda p: torch.optim.Adam(p, torch.tensor(1e-2)),
    "adamw": lambda p: torch.optim.AdamW(
        [{"params": p[:1], "weight_decay": 0.0}, {"params": p[1:], "lr": 0.1 + 0.2}], 1e-2
    ),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, 1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, 1e-2),
    "radam": lambda p: torch.optim.RAdam(p, 1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, 1e-2),
    "asgd": lambda p: torch.optim.ASGD(p, 1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 1e-2, max_iter=3),
    "muon": lambda p: Muon([x for x in p if x.ndim > 1], [x for x in p if x.ndim < 2], 1e-2),
    "odd": Odd,
}


def net(channels_last=False):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 3, padding=1))
    return made.to(memory_format=torch.channels_last) if channels_last else made


def train(model, optimiser, steps):
    for step in steps:
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))

        def loss(x=x):
            optimiser.zero_grad()
            value = model(x).square().mean()
            value.backward()
            return value

        if isinstance(optimiser, torch.optim.LBFGS):
            optimiser.step(loss)
        else:
            loss()
            optimiser.step()


def same(a, b):
    """Whether two values are one in type, order and every bit, tensors also in their strides."""
    if isinstance(a, torch.Tensor):
        both = isinstance(b, torch.Tensor) and (a.dtype, a.shape, a.stride()) == (
            b.dtype,
            b.shape,
            b.stride(),
        )
        return both and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return a == b


@pytest.mark.parametrize("channels_last", [False, True], ids=["rows", "channels last"])
@pytest.mark.parametrize("name", MAKERS)
def test_an_optimiser_goes_on_from_a_file_as_if_it_had_never_stopped(tmp_path, name, channels_last):
    if name == "lbfgs" and channels_last:
        pytest.skip("torch's LBFGS takes gradients in rows only")
    first = net(channels_last)
    optimiser = MAKERS[name](list(first.parameters()))
    for steps in (range(0), range(3)):
        train(first, optimiser, steps)
        tensors, facts = flatten_optimiser(optimiser.state_dict())
        groups = {"weights": first.state_dict(), "optimiser": tensors}
        found = load(save(tmp_path, len(steps), groups, {"optimiser": facts}))
        state = restore_optimiser(found.tensors["optimiser"], found.facts["optimiser"])
        assert same(state, optimiser.state_dict())

    second = net(channels_last)
    second.load_state_dict(found.tensors["weights"])
    other = MAKERS[name](list(second.parameters()))
    other.load_state_dict(state)
    train(first, optimiser, range(3, 6))
    train(second, other, range(3, 6))
    assert same(dict(first.state_dict()), dict(second.state_dict()))
    assert same(optimiser.state_dict(), other.state_dict())


keys = st.one_of(st.text(max_size=4), st.integers(), st.booleans(), st.tuples(st.integers(), st.text()))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["$tensor", "$tuple"]),
    st.integers(0, 3).map(lambda n: torch.arange(n)),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(keys, st.sampled_from(["$tensor", "$dict"])), inner, max_size=3),
    ),
    max_leaves=12,
)


@given(values)
def test_whatever_is_nested_comes_back_exactly_through_json(value):
    tensors, facts = flatten(value)
    assert same(restored(tensors, json.loads(json.dumps(facts))), value)


@pytest.mark.parametrize("value", [-0.0, 5e-324, 0.1 + 0.2, 1e308, 2**4000, np.float64(0.1)])
def test_numbers_keep_every_bit(value):
    (back,) = restored({}, json.loads(json.dumps(flatten([value])[1])))
    assert same(back, value if isinstance(value, int) else float(value))


def test_a_view_without_a_layout_of_its_own_keeps_its_values():
    value = {"wide": torch.arange(3.0).expand(2, 3), "gaps": torch.arange(6.0)[::2]}
    found = restored(*flatten(value))
    assert all(torch.equal(found[name], tensor) for name, tensor in value.items())


def test_what_cannot_be_flattened_is_refused_by_name():
    for bad in (object(), np.float32(1), {1}, torch.float32, b"1", torch.Size([1])):
        with pytest.raises(InputError, match=r"param_groups\.0\.x is a"):
            flatten_optimiser({"state": {}, "param_groups": [{"x": bad}]})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NumericError, match=r"state\.3\.x is (nan|inf)"):
            flatten_optimiser({"state": {3: {"x": bad}}, "param_groups": []})
    optimiser = torch.optim.SGD(net().parameters(), 0.1)
    for bad in (optimiser, {}, None, [optimiser.state_dict()]):
        with pytest.raises(InputError, match=r"state_dict must be an optimiser's state_dict\(\)"):
            flatten_optimiser(bad)


def test_tensors_and_facts_that_do_not_belong_together_are_told():
    tensors, facts = flatten({"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(CheckpointError, match="there is no tensor b"):
        restored({"a": tensors["a"]}, facts)
    with pytest.raises(CheckpointError, match="tensor c has no place"):
        restored(tensors | {"c": torch.ones(1)}, facts)


def test_an_optimiser_that_is_not_finite_is_refused_by_name(tmp_path):
    model = net()
    optimiser = torch.optim.AdamW(model.parameters())
    train(model, optimiser, range(1))
    optimiser.state_dict()["state"][2]["exp_avg"][0, 0, 0, 0] = float("nan")
    tensors, facts = flatten_optimiser(optimiser.state_dict())
    with pytest.raises(NumericError, match=r"optimiser: state\.2\.exp_avg has 1 values"):
        save(tmp_path, 1, {"optimiser": tensors}, {"optimiser": facts})


def draw():
    """Of odd numbers, so that halves of pairs of normal numbers are kept in the generators."""
    normal = [random.gauss(0, 1), np.random.randn(), float(torch.randn(1))]
    return normal, torch.randn(7).tolist(), random.random(), np.random.rand(3).tolist()


def test_generators_go_on_where_they_were(tmp_path):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    draw()
    tensors, facts = random_states()
    expected = draw()
    draw()
    found = load(save(tmp_path, 1, {"random": tensors}, {"random": facts}))
    set_random_states(found.tensors["random"], found.facts["random"])
    assert draw() == expected
    other = np.random.default_rng(3)  # a generator of one's own: its state has whole numbers of 128 bits
    state = load(save(tmp_path, 2, {}, {"mine": other.bit_generator.state})).facts["mine"]
    again = np.random.default_rng(4)
    again.bit_generator.state = state
    assert again.random() == other.random()


def test_states_of_no_generators_are_refused():
    tensors, facts = random_states()
    for bad in ({}, {"torch": torch.zeros(3)}, restored(tensors, facts) | {"torch": torch.zeros(3)}):
        with pytest.raises(CheckpointError, match=r"no states of random generators"):
            set_random_states(*flatten(bad))
