"""A GPU's own clock: contestants take turns, and the median of each is what counts.

What is not the function that it should be is not timed.
"""

from collections.abc import Callable, Iterator, Mapping
from statistics import median

import torch

from benchmarks.table import Row

Contestants = Mapping[str, Callable[[], object]]
Clock = Callable[[Contestants, int], dict[str, float]]


def events(contestants: Contestants, rounds: int, calls: int = 1, warm_up: int = 2) -> dict[str, float]:
    """Seconds from where a call begins on the device to where it ends: the median of interleaved samples.

    Before each the device has nothing to do, so that what the host cannot launch in time is seen.
    rounds   samples of each; warm_up: those beforehand that are not counted
    calls    of a sample, one after another
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for i in range(-warm_up, rounds):
        for name in order if i % 2 else reversed(order):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begun.record()
            for _ in range(calls):
                contestants[name]()
            ended.record()
            torch.cuda.synchronize()
            if i >= 0:
                seconds[name].append(begun.elapsed_time(ended) / 1000 / calls)
    return {name: median(values) for name, values in seconds.items()}


def launched(contestants: Contestants, rounds: int, calls: int = 20) -> dict[str, float]:
    """Seconds of a call without the time of launching it: `events` of graphs of so many calls."""
    graphs = {}
    for name, call in contestants.items():
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            call()
        torch.cuda.current_stream().wait_stream(aside)
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for _ in range(calls):
                call()
    replays = {name: graph.replay for name, graph in graphs.items()}
    return {name: value / calls for name, value in events(replays, rounds).items()}


def tried(what: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; where a contestant computes something else, one without figures that says so, and no more."""
    try:
        yield from rows
    except AssertionError as error:
        yield Row(what, None, note=f"not measured: {error}")
