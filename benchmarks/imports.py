"""What `import ldm` costs beyond `import torch`, without which nothing goes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import ldm
from benchmarks.table import Row

ROUNDS = 9
GOAL = 0.2  # seconds
HEAVY = ("transformers", "diffusers", "triton")  # peers and compilers, which nobody asked for by importing us

# The clock runs inside the process: how long Python itself takes to start and stop is not ours.
PROGRAM = """
import json, sys, time
begun = time.perf_counter()
import torch
between = time.perf_counter()
before = set(sys.modules)
import {module}
ended = time.perf_counter()
print(json.dumps([between - begun, ended - between, sorted(set(sys.modules) - before)]))
"""


def rows() -> Iterator[Row]:
    """The extra time of `import ldm`, with diffusers' pipeline as the peer; and what it may not load."""
    ours, theirs, loaded = [], [], set()
    for i in range(-1, ROUNDS):  # the first round only warms the disk cache
        alone, extra, modules = timed("ldm")
        _, peer, _ = timed("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
        if i >= 0:
            ours.append((alone, extra))
            theirs.append(peer)
            loaded |= {module.partition(".")[0] for module in modules}
    torch_alone = median(alone for alone, _ in ours)
    yield Row(
        "import, beyond torch",
        median(extra for _, extra in ours),
        median(theirs),
        most=GOAL,
        note=f"torch itself {torch_alone:.2f} s; the peer is StableDiffusionPipeline; fresh processes",
    )
    for name in HEAVY:
        yield Row(f"import ldm leaves {name} alone", None, said=name not in loaded)


def timed(module: str) -> tuple[float, float, list[str]]:
    """Seconds of `import torch`, of `import module` after it, and the modules that the latter added."""
    place = str(Path(ldm.__file__).parents[1])
    path = os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        capture_output=True, text=True, check=True,
        # bytecode is kept between processes, as it is where a package is installed
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""},
    )  # fmt: skip
    alone, extra, modules = json.loads(answer.stdout.splitlines()[-1])
    return alone, extra, modules
