"""What the recorder of CUDA's graphs does, where there is no CUDA."""

import gc
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("triton")

from ldm_kernels import graphs

from tests.tiny import unit_noise


@pytest.fixture
def events(monkeypatch):
    """What the recorder does, where there is no CUDA."""
    done, current = [], ["the caller's"]

    class Stream:
        def __init__(self, device="cuda:0"):
            self.device = device

        def wait_stream(self, other):
            pass

    current[0] = Stream()

    @contextmanager
    def stream(x):
        before, current[0] = current[0], x
        try:
            yield
        finally:
            current[0] = before

    @contextmanager
    def graph(graph, pool, aside, capture_error_mode):
        done.append(("begun", pool, aside, gc.isenabled()))
        current[0] = aside
        yield
        current[0] = done.append("ended")

    cuda = {
        "Stream": Stream, "current_stream": lambda: current[0], "stream": stream, "graph": graph,
        "CUDAGraph": lambda: type("G", (), {"pool": lambda self: "a pool", "replay": lambda self: None})(),
    }  # fmt: skip
    for name, thing in cuda.items():
        monkeypatch.setattr(torch.cuda, name, thing)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: done.append("clear"), raising=False)
    return done


def test_a_recorder_has_a_stream_and_a_pool_of_its_own(events):
    record, x = graphs.Recorder(), unit_noise(0, 2)
    replays = [record(lambda: events.append("run") or x) for _ in range(2)]
    before, first, *_ = events[1:]
    assert before == "clear" and events[:1] == ["run"] and replays[0]() is x
    assert events[2:6] == [first, "run", "ended", "clear"] and gc.isenabled()
    _, pool, aside, collecting = first
    assert pool is None and aside is not torch.cuda.current_stream() and not collecting
    assert events[8] == ("begun", "a pool", aside, False)
    graphs.Recorder()(lambda: x)
    assert events[-3][2] is not aside


def test_after_a_failure_the_callers_stream_is_the_current_one(events):
    caller, runs = torch.cuda.current_stream(), []

    def fails_in_a_graph():
        runs.append(1)
        if len(runs) == 2:
            raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError):
        graphs.Recorder()(fails_in_a_graph)
    assert torch.cuda.current_stream() is caller and gc.isenabled() and events[-1] == "clear"
