"""Clocks: contestants take turns, and the median of each is what counts.

Taking turns shares whatever else the machine does equally among them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch


def medians(
    contestants: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[str, float]:
    """Seconds that a call of each contestant takes: the median of `rounds` interleaved calls.

    Every other round goes through them backwards, so that none always follows the same one.
    warm_up: calls of each beforehand that are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for i in range(-warm_up, rounds):
        for name in order if i % 2 else reversed(order):
            begun = time.perf_counter()
            contestants[name]()
            if i >= 0:
                seconds[name].append(time.perf_counter() - begun)
    return {name: median(values) for name, values in seconds.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within the block torch computes on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
