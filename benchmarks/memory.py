"""Memory that one picture of 512² takes: Stable Diffusion 1.5 in float32 from a file, ours and diffusers'.

Each draws in a process of its own, from weights of 4.3 GB that are in the page cache, and tells the most
memory that it had at once: its own, and touched pages of mapped files. More steps take no more.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.load import make, told
from benchmarks.table import Row, megabytes

ROOM = 10_000_000_000  # bytes of disk: the weights twice, and some
SIDE, STEPS = 512, 2
LESS = 1 / 0.7  # goal: diffusers takes so many times as much


def rows() -> Iterator[Row]:
    """The peak of plain and of packed networks."""
    with TemporaryDirectory(prefix="ldm-memory-") as name:
        place = Path(name)
        if (free := shutil.disk_usage(place).free) < ROOM:
            raise OSError(f"{place} has {free / 1e9:.1f} GB free, and {ROOM / 1e9:.0f} GB are needed")
        make(place / "sd.safetensors", place / "sd", torch.float32)
        theirs = peak("diffusers", place / "sd")
        for way, goal in (("packed", round(LESS, 2)), ("plain", None)):
            ours = peak(way, place / "sd.safetensors")
            what = f"memory of a picture of {SIDE}², {way}"
            yield Row(what, ours, theirs, ratio=goal, note="StableDiffusionPipeline", show=megabytes)


def peak(way: str, source: Path) -> float:
    """Bytes that a process takes which draws a picture."""
    return told("benchmarks.memory", way, source)["peak"]


def main() -> None:
    """Draw once, as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="One picture as JSON.")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("source", type=Path)
    said = parser.parse_args()
    WAYS[said.way](said.source)
    print(json.dumps({"peak": most()}))


def most() -> int:
    """Bytes that this process had in memory at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    sys.exit("this system does not tell how much memory a process had at most")


def ours(source: Path, fast: bool) -> None:
    """A picture by this library."""
    import ldm

    drawn(ldm.load(source, fast=fast), progress=False)


def theirs(source: Path) -> None:
    """A picture by diffusers."""
    from diffusers import StableDiffusionPipeline

    drawn(StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32, safety_checker=None))


def drawn(pipe: Any, **more: Any) -> None:
    """A picture."""
    pipe("a cat", height=SIDE, width=SIDE, num_inference_steps=STEPS, **more)


WAYS: dict[str, Callable[[Path], None]] = {
    "plain": lambda source: ours(source, fast=False),
    "packed": lambda source: ours(source, fast=True),
    "diffusers": theirs,
}

if __name__ == "__main__":
    main()
