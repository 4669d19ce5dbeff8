"""Measure, and print one table of ratios: `python -m benchmarks [NAME …] [--out FILE]`."""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import cpu, gpu, image, imports, load, memory, solver, training, unet
from benchmarks.table import Row, document, heading, line

BENCHMARKS: dict[str, Callable[[], Iterator[Row]]] = {
    "import": imports.rows,
    "solver": solver.rows,
    "unet": unet.rows,
    "image": image.rows,
    "load": load.rows,  # takes minutes, and 4.3 GB of disk for as long
    "unet-64": partial(unet.rows, 64),  # takes minutes
    "training": training.rows,  # takes minutes
    "memory": memory.rows,  # takes minutes, and 10 GB of disk for as long
    "cpu": cpu.rows,  # takes minutes, and 12 GB of memory
    "gpu": partial(gpu.rows, gpu.attention, gpu.eager, gpu.compiled),  # takes nine minutes of an H200
    "gpu-attention": partial(gpu.rows, gpu.attention),
    "gpu-steps": partial(gpu.rows, gpu.eager),
    "gpu-compiled": partial(gpu.rows, gpu.compiled),  # takes most of them
}
USUAL = ("import", "solver", "unet", "image")


def main() -> None:
    """Run the benchmarks asked for; each row is printed as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(BENCHMARKS)}; import, solver, unet and image if not given",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write machine, versions and table here"
    )
    given = parser.parse_args()
    for name in given.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    print(heading(), flush=True)
    rows = []
    for name in given.names or USUAL:
        for row in BENCHMARKS[name]():
            rows.append(row)
            print(line(row), flush=True)
            if given.out:  # each time, as what comes next may not end
                given.out.write_text(document(rows), encoding="utf-8")
    missed = [row.what for row in rows if row.met is False]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)


if __name__ == "__main__":
    main()
