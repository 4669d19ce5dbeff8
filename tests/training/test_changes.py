"""A run goes on with the config it was begun with, but for what may change."""

import pytest

from ldm import InputError
from ldm.training.changes import check_same, differing

CONFIG = {"lr": 1e-3, "betas": (0.9, 0.99), "data": {"size": 64, "folder": "a"}, "ema": None, "fused": True}


def test_a_config_is_that_which_was_read_back():
    assert differing(CONFIG, CONFIG | {"betas": [0.9, 0.99]}) == []
    check_same(CONFIG, {name: CONFIG[name] for name in reversed(CONFIG)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 2e-3}, ["lr: was 0.001, is 0.002"]),
        ({"betas": (0.9, 0.999)}, ["betas: was [0.9, 0.99], is [0.9, 0.999]"]),
        ({"data": {"size": 32, "folder": "a"}}, ["data.size: was 64, is 32"]),
        ({"data": {"size": 64}}, ["data.folder: was 'a', is not there"]),
        ({"ema": 0.99}, ["ema: was None, is 0.99"]),
        ({"more": 0}, ["more: was not there, is 0"]),
        ({"fused": 1}, ["fused: was True, is 1"]),
        ({"data": {}}, ["data.size: was 64, is not there", "data.folder: was 'a', is not there",
                        "data: was not there, is {}"]),
        ({"lr": 1, "fused": False, "more": "x"},
         ["lr: was 0.001, is 1", "fused: was True, is False", "more: was not there, is 'x'"]),
    ],
)  # fmt: skip
def test_every_field_that_differs_is_named_with_both_values(change, said):
    assert differing(CONFIG, CONFIG | change) == said
    with pytest.raises(InputError, match="begun with another config") as caught:
        check_same(CONFIG, CONFIG | change)
    assert all(line in str(caught.value) for line in said)


def test_what_is_free_may_change_with_all_that_is_in_it():
    now = CONFIG | {"data": {"size": 32, "folder": "b", "new": 1}, "lr": 1}
    assert differing(CONFIG, now, free=["data", "lr"]) == []
    assert differing(CONFIG, now, free=["data.folder", "dat"]) == [
        "lr: was 0.001, is 1",
        "data.size: was 64, is 32",
        "data.new: was not there, is 1",
    ]
    check_same(CONFIG, now, free=("lr", "data"))
