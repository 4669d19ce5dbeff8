"""Which way is taken: the fastest of those that compute what PyTorch does."""

import logging
import threading

import pytest
import torch

pytest.importorskip("triton")

from ldm_kernels import backend, choice
from ldm_kernels.choice import Contest, kind
from triton.runtime.errors import TritonError

from tests.tiny import unit_noise

X = unit_noise(0, 4, 6)


def refuses(x):
    raise RuntimeError("No available kernel")


def is_too_large(x):
    raise TritonError("out of resource: shared memory")


def spoiled(x):
    return x * float("nan")


SPEED = {"kernel": 3.0, "other": 2.0, "plain": 5.0, "wrong": 1.0}


@pytest.fixture
def contest(monkeypatch):
    """Each way's time is told; `wrong` is the fastest."""
    ways = {
        "kernel": lambda x: x * 2.0, "other": lambda x: x + x, "wrong": lambda x: x * 2.1, "refuses": refuses,
        "too large": is_too_large, "spoiled": spoiled,
    }  # fmt: skip
    contest = Contest("doubling", ways, lambda x: 2 * x)
    contest.timed = []

    def milliseconds(way, *given):
        (name,) = (name for name, each in contest.ways.items() if each is way)
        contest.timed.append(name)
        return SPEED[name]

    monkeypatch.setattr(choice, "INTERPRETED", False)
    monkeypatch.setattr(choice, "milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return contest


def test_the_fastest_right_way_is_taken(contest, caplog):
    caplog.set_level(logging.WARNING, "ldm")
    assert torch.equal(contest(X), 2 * X) and contest.fastest(X) == "other"
    assert contest.timed == ["kernel", "other", "plain"]
    said = [record.message for record in caplog.records]
    assert len(said) == 2 and said[0].startswith("doubling by wrong is 0.05 from what PyTorch computes")


def test_it_is_measured_once_a_kind_of_inputs(contest):
    for x in (X, X.clone(), X + 1):
        contest(x)
    assert len(contest.chosen) == 1
    for x in (X.half(), X[:3], X.T, X[:, ::2]):
        contest(x)
    assert len(contest.chosen) == 5
    assert kind(X) != kind(X.T) and kind(True) is True


def test_pytorch_is_taken_where_it_is_the_fastest(contest, monkeypatch):
    monkeypatch.setitem(SPEED, "plain", 0.5)
    assert contest.fastest(X) == "plain"


def test_while_a_graph_is_recorded_nothing_is_measured(contest, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert contest.fastest(X) == "plain" and not contest.chosen and not contest.timed
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert contest.fastest(X) == "other"


def test_under_the_interpreter_it_is_the_kernel(contest, monkeypatch):
    monkeypatch.setattr(choice, "INTERPRETED", True)
    assert torch.equal(contest(X), 2 * X) and not contest.timed and contest.first == "kernel"


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("short", ["a way", "measuring"])
def test_where_memory_is_short_pytorchs_is_taken_this_time_only(contest, monkeypatch, caplog, short):
    caplog.set_level(logging.WARNING, "ldm")
    with monkeypatch.context() as patch:
        if short == "a way":
            patch.setitem(contest.ways, "other", out_of_memory)
        else:
            patch.setattr(choice, "milliseconds", out_of_memory)
        assert contest.fastest(X) == "plain" and not contest.chosen
        assert torch.equal(contest(X), 2 * X)
    assert not any("memory" in record.message for record in caplog.records)
    assert contest.fastest(X) == "other" and contest.chosen


def test_nothing_is_judged_by_what_is_not_finite(contest, caplog):
    caplog.set_level(logging.WARNING, "ldm")
    x = X.clone()
    x[0, 0] = float("inf")
    assert contest.fastest(x) == "plain" and not contest.chosen and not contest.timed and not caplog.records
    assert contest.fastest(X) == "other"  # the next of the kind


def test_a_kernel_of_this_project_that_fails_is_heard_of(contest, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "ldm")
    monkeypatch.setitem(contest.ways, "kernel", refuses)
    assert contest.fastest(X) == "other"
    assert [m for m in caplog.messages if "fails" in m] == [
        "doubling by kernel fails, and is not used: No available kernel"
    ]


def test_threads_measure_one_after_another_and_once(contest):
    entered, found = threading.Event(), []
    slowly = contest.measured

    def measured(x):
        entered.set()
        return slowly(x)

    contest.measured = measured
    with choice.alone:  # as while a graph is recorded
        threads = [threading.Thread(target=lambda: found.append(contest.fastest(X))) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert not entered.wait(0.1)
    for thread in threads:
        thread.join()
    assert found == ["other"] * 3 and len(contest.timed) == 3  # each of the right ways once


@pytest.mark.parametrize(("each", "calls"), [(0.01, 20), (0.5, 6), (40.0, 1)])
def test_a_way_is_timed_while_the_host_is_ahead(monkeypatch, each, calls):
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = done.count("way") * each
            done.append("event")

        def synchronize(self):
            done.append("waited")

        def elapsed_time(self, other):
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("sleep"))
    assert choice.milliseconds(lambda x: done.append("way"), X) == pytest.approx(each)
    sample = ["sleep", "event", *["way"] * calls, "event", "waited"]
    assert done == ["sleep", "event", "way", "event", "waited", *sample * choice.ROUNDS]


def test_nothing_writes_down_more_scores_than_fit(monkeypatch):
    q, k, v = (unit_noise(i, 1, 2, 300, 16) for i in range(3))
    wanted, seen = backend.sdpa(q, k, v, False), []

    def noted(q, k, v, causal):
        seen.append(4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    monkeypatch.setattr(backend, "sdpa", noted)
    assert torch.equal(backend.plain(q, k, v), wanted) and seen == [4 * 2 * 300 * 300]
    monkeypatch.setattr(backend, "SCORES", 100_000)
    seen.clear()
    assert float((backend.plain(q, k, v) - wanted).abs().max()) < 1e-6
    assert max(seen) <= 100_000 and sum(seen) == 4 * 2 * 300 * 300
    assert backend.plain(q, k[:, :, :0], v[:, :, :0]).shape == q.shape
