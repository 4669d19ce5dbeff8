"""One load, or one look, in a process of its own, told as a line of JSON.

    python -m benchmarks.loader WAY DTYPE FILE FOLDER [--memory]

Each way imports what it is called by before the clock starts. With `--memory` a thread looks at the process's
own memory every millisecond; that slows it down a little, so times come from runs without it.
"""

import argparse
import gc
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

Load = Callable[[], Any]


class Given(NamedTuple):
    """The same weights twice, and what they are to become."""

    file: Path  # in the official layout
    folder: Path  # in the layout of diffusers; its configs serve diffusers for the file too
    dtype: torch.dtype


def main() -> None:
    """Load once, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description="One load as JSON.")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("dtype", choices=("float16", "float32"))
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", action="store_true", help="bytes instead of seconds")
    said = parser.parse_args()
    load = WAYS[said.way](Given(said.file, said.folder, getattr(torch, said.dtype)))
    gc.collect()
    print(json.dumps(memory(load) if said.memory else times(load)))


def times(load: Load) -> dict[str, float]:
    """Seconds of the load, and of the load and reading every weight once; and the sum of all weights."""
    begun = time.perf_counter()
    loaded = load()
    between = time.perf_counter()
    total = sum(float(weight.sum()) for weight in weights(loaded))
    return {"load": between - begun, "read": time.perf_counter() - begun, "sum": total}


def memory(load: Load) -> dict[str, int]:
    """Bytes by which memory grew at its peak, anonymous and in total; and of the weights.

    Anonymous memory is the process's own. The total also has the pages of mapped files that it touched: they
    are the page cache's, and go when memory is short. It is the kernel's high-water mark, not a sample.
    """
    before = status()
    with watching() as anonymous:
        loaded = load()
    total = status()["VmHWM"]  # not ru_maxrss, which a process inherits from the one that started it
    return {
        "anonymous": max(anonymous) - before["RssAnon"],
        "total": total - before["VmRSS"],
        "weights": sum(weight.numel() * weight.element_size() for weight in weights(loaded)),
    }


@contextmanager
def watching(pause: float = 1e-3) -> Iterator[list[int]]:
    """Anonymous memory in bytes, now and again while the block runs and at its end; pause in seconds."""
    found: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(pause):
            found.append(status()["RssAnon"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
        found.append(status()["RssAnon"])
    finally:
        over.set()
        thread.join()


def status() -> dict[str, int]:
    """The sizes in /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {name: int(value.removesuffix("kB")) * 1024 for name, _, value in fields}


def weights(loaded: Any) -> Iterator[torch.Tensor]:
    """All weights of a pipeline, ours or diffusers'; of a report there are none."""
    parts = loaded.components.values() if hasattr(loaded, "components") else ()
    for part in loaded.networks() if hasattr(loaded, "networks") else parts:
        if isinstance(part, nn.Module):
            yield from (weight.detach() for weight in part.parameters())


def ours(given: Given) -> Load:
    """Ours, from the file."""
    import ldm

    return lambda: ldm.load(given.file, dtype=given.dtype)


def ours_folder(given: Given) -> Load:
    """Ours, from the folder."""
    import ldm

    return lambda: ldm.load(given.folder, dtype=given.dtype)


def from_single_file(given: Given) -> Load:
    """diffusers, from the file with local configs."""
    load = diffusers_pipeline().from_single_file
    return lambda: load(str(given.file), config=str(given.folder), **options(given))


def from_pretrained(given: Given) -> Load:
    """diffusers, from the folder."""
    load = diffusers_pipeline().from_pretrained
    return lambda: load(str(given.folder), **options(given))


def diffusers_pipeline() -> Any:
    """Its class, with which it imports accelerate and what of transformers it needs; no bars, no advice."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.disable(logging.WARNING)
    return StableDiffusionPipeline


def options(given: Given) -> dict[str, Any]:
    """What both of diffusers' ways are told; `low_cpu_mem_usage` is left as it is."""
    checker = {"safety_checker": None, "requires_safety_checker": False}
    return {"torch_dtype": given.dtype, "local_files_only": True, **checker}


def inspect_file(given: Given) -> Load:
    """A look at the file."""
    import ldm

    return lambda: ldm.inspect(given.file)


def inspect_folder(given: Given) -> Load:
    """A look at the folder."""
    import ldm

    return lambda: ldm.inspect(given.folder)


WAYS: dict[str, Callable[[Given], Load]] = {
    way.__name__: way
    for way in (ours, ours_folder, from_single_file, from_pretrained, inspect_file, inspect_folder)
}

if __name__ == "__main__":
    main()
