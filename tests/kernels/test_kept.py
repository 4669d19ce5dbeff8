"""Which graphs of a UNet's step are recorded and kept, and for how long."""

import logging
from weakref import ref

import pytest
import torch

pytest.importorskip("triton")

from ldm_kernels import graphs

from tests.kernels.graphed import Graphed, step
from tests.kernels.ways import by_pytorch
from tests.tiny import uncollected


@pytest.fixture(autouse=True)
def ways(monkeypatch):
    by_pytorch(monkeypatch)
    with torch.no_grad():
        yield


def test_few_graphs_are_kept_those_last_in_use():
    both = Graphed("sd1", kept=2)
    for side, recorded in ((8, 1), (16, 2), (8, 2), (24, 3), (8, 3), (16, 4)):
        for _ in range(2):
            assert torch.equal(step(both.pipe.unet, side=side), step(both.plain.unet, side=side))
        assert both.record.recorded == recorded and len(both.captured.graphs) <= 2


def test_sizes_met_once_are_not_recorded_and_forgotten_at_last(monkeypatch):
    monkeypatch.setattr(graphs, "MET", 2)
    both = Graphed("sd1")
    for side in (8, 16, 24, 8, 16, 24):
        step(both.pipe.unet, side=side)
        assert len(both.captured.met) <= 2
    assert both.record.recorded == 0
    step(both.pipe.unet, side=24)
    assert both.record.recorded == 1


@pytest.mark.parametrize(
    "ends", [torch.OutOfMemoryError("no more"), RuntimeError("CUDA error: out of memory")]
)
def test_a_step_too_large_for_a_graph_runs_as_ever(ends, caplog):
    caplog.set_level(logging.WARNING, "ldm")
    both, asked = Graphed("sd1"), []

    def record(function):
        asked.append(len(asked))
        if len(asked) == 2:
            raise ends
        return both.record(function)

    both.captured.recorder, both.captured.record = lambda: record, record
    for side in (8, 8, 8, 16, 16, 16, 16, 8, 8):  # the first graph goes with the others, and comes again
        assert torch.equal(step(both.pipe.unet, side=side), step(both.plain.unet, side=side))
    assert len(asked) == 3 and (both.record.recorded, both.record.replayed) == (2, 2)
    (said,) = (record.message for record in caplog.records)
    assert said.startswith("steps with a latent of [1,")
    assert "have no CUDA graph, and are slower: there is too little memory for it; a smaller" in said


def test_what_else_recording_says_is_told_and_the_steps_go_on(caplog):
    """Where only recording is broken, a picture can be drawn; what is broken by itself is not hidden."""
    asked = []

    def record(function):
        asked.append(function)
        raise RuntimeError("operation not permitted when stream is capturing")

    both = Graphed("sd1", record=record)
    for _ in range(4):
        assert torch.equal(step(both.pipe.unet), step(both.plain.unet))
    (said,) = (record.message for record in caplog.records)
    assert said.endswith("and are slower: operation not permitted when stream is capturing")
    assert len(asked) == 1
    both.captured.run = lambda *given: torch.zeros(1) @ torch.zeros(2)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        step(both.pipe.unet)


def test_autocast_has_graphs_of_its_own():
    both = Graphed("sd1")
    for _ in range(3):
        step(both.pipe.unet)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found, wanted = (step(pipe.unet) for pipe in (both.pipe, both.plain))
        assert torch.equal(found, wanted)
    assert (both.record.recorded, both.record.replayed) == (2, 1)


def test_a_unet_with_graphs_goes_with_its_pipeline():
    both = Graphed("sd1")
    for _ in range(3):
        step(both.pipe.unet)
    gone = [ref(thing) for thing in (both.pipe.unet, both.pipe.unet.mid, *both.captured.graphs.values())]
    with uncollected():
        del both
        assert [thing() for thing in gone] == [None] * 3
