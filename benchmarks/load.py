"""Loading Stable Diffusion 1.5 at full width: a single file of 2.1 GB in fp16, ours against diffusers'.

Each load has a process of its own, the files are in the page cache, and imports are not counted. The peers
load the same weights from the same file and from a folder; the faster, or smaller, of the two counts. Mapped
weights are read from the file when they are used, so the time until each was read once is told as well.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from math import isclose
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

import ldm
from benchmarks.table import Row, Show, megabytes, proportion, seconds
from ldm.checkpoint import original
from ldm.checkpoint.header import NAMES
from ldm.checkpoint.plan import networks
from ldm.checkpoint.table import assemble, table
from ldm.clip import Tokenizer
from ldm.devices import hollow as without_values
from ldm.families import SD1, SDXL
from ldm.family import Family
from ldm.model import Model

ROUNDS = 5
ROOM = 5_000_000_000  # bytes of disk: the weights twice, and some
PEERS = ("from_single_file", "from_pretrained")
WAYS = ("ours", *PEERS, "ours_folder")
FASTER = 2.0  # goal: times as fast as the peers
MOST_KEPT = 100e6  # goal: bytes of memory where the dtype is kept
MOST_CONVERTED = 1.06  # goal: memory over final weights where it is converted
MOST_LOOK = 0.2  # goal: seconds of `ldm.inspect`

Told = dict[str, float]  # what a process said


def rows() -> Iterator[Row]:
    """Times and memory with the dtype kept and converted; and the time of a look."""
    with TemporaryDirectory(prefix="ldm-load-") as name:
        place = Path(name)
        if (free := shutil.disk_usage(place).free) < ROOM:
            raise OSError(f"{place} has {free / 1e9:.1f} GB free, and {ROOM / 1e9:.0f} GB are needed")
        make(place / "sd.safetensors", place / "sd")
        yield from loads(place, "float16", "fp16 kept")
        yield from loads(place, "float32", "fp16 to fp32")
        hollow(SDXL, place / "sdxl.safetensors")
        for what, way, file in (
            ("file of SD 1.5", "inspect_file", "sd.safetensors"),
            ("folder of SD 1.5", "inspect_folder", "sd.safetensors"),
            ("file of SDXL", "inspect_file", "sdxl.safetensors"),
        ):
            took = [ask(place, way, "float16", file=file)["load"] for _ in range(ROUNDS + 1)]
            yield Row(f"inspect a {what}", median(took[1:]), most=MOST_LOOK, note="headers only")


def loads(place: Path, dtype: str, what: str) -> Iterator[Row]:
    """The rows of one dtype. The first round measures memory, and so warms the page cache."""
    held = {way: ask(place, way, dtype, "--memory") for way in WAYS}
    rounds = [
        {way: ask(place, way, dtype) for way in (WAYS if i % 2 else reversed(WAYS))} for i in range(ROUNDS)
    ]
    check_same(rounds[0], {way: told["weights"] for way, told in held.items()})
    took = {key: {way: median(r[way][key] for r in rounds) for way in WAYS} for key in ("load", "read")}
    name = f"load SD 1.5, {what}"
    load, read = took["load"], took["read"]
    note = (
        f"{both(load, seconds)}; a fresh process each; our load of the folder {seconds(load['ours_folder'])}"
    )
    yield Row(name, load["ours"], least(load), ratio=FASTER, note=note)
    yield Row(f"{name}, and read all", read["ours"], least(read), note=both(read, seconds))
    size = held["ours"]["weights"]
    total = {way: told["total"] / size for way, told in held.items()}
    own = {way: told["anonymous"] for way, told in held.items()}
    if dtype == "float32":
        note = f"{both(total, proportion)}; of {size / 1e9:.2f} GB, with touched pages of mapped files"
        yield Row(
            f"{name}, peak / weights", total["ours"], least(total), MOST_CONVERTED, note=note, show=proportion
        )
        return
    mapped = f"with touched pages of the mapped file {megabytes(held['ours']['total'])}"
    theirs = ", ".join(megabytes(held[way]["total"]) for way in PEERS)
    note = f"{both(own, megabytes)}; own memory; {mapped}, theirs {theirs}"
    yield Row(f"{name}, memory", own["ours"], least(own), MOST_KEPT, note=note, show=megabytes)


def least(found: Told) -> float:
    """The better of the two peers."""
    return min(found[way] for way in PEERS)


def both(found: Told, show: Show) -> str:
    """The figures of both peers."""
    return ", ".join(f"{way} {show(found[way])}" for way in PEERS)


def check_same(told: dict[str, Told], sizes: Told) -> None:
    """Raises AssertionError if the ways did not load the same weights."""
    sums = {way: told[way]["sum"] for way in WAYS}
    alike = all(isclose(total, sums["ours"], rel_tol=1e-3) for total in sums.values())
    if not alike or len(set(sizes.values())) > 1:
        raise AssertionError(f"not the same weights: sums {sums}, bytes {sizes}")


def ask(place: Path, way: str, dtype: str, *more: str, file: str = "sd.safetensors") -> Told:
    """What a process of its own says of one load."""
    return told("benchmarks.loader", way, dtype, place / file, place / "sd", *more)


def told(module: str, *arguments: str | Path) -> Told:
    """What a process of its own says, the last line of a module's output; it touches no network."""
    roots = [str(Path(ldm.__file__).parents[1]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    answer = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots)), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    said: Told = json.loads(answer.stdout.splitlines()[-1])
    return said


def make(file: Path, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Random weights of SD 1.5, as a file in the official layout and as a folder in diffusers'."""
    generator = torch.Generator().manual_seed(0)
    built = {}
    for name, network in bare(SD1).items():
        built[name] = network.to(dtype).to_empty(device="cpu").requires_grad_(False)
        for weight in built[name].parameters():
            weight.uniform_(-0.03, 0.03, generator=generator)
    texts = [built[text.name] for text in SD1.texts]
    model = Model(SD1, built["unet"], built["vae"], texts, [Tokenizer.openai()])
    ldm.save(model, file)
    ldm.save(model, folder, layout="diffusers")


def hollow(family: Family, path: Path) -> None:
    """A family's single file in fp16 whose data are a hole: of full size, and a header on the disk."""
    rules = original.rules(family, original.prefixes(family))
    header, at = {}, 0
    for name, network in bare(family).items():
        state = network.half().state_dict()
        for key, tensor in assemble(state, table(state, rules[name])).items():
            end = at + tensor.nbytes
            header[key] = {
                "dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]
            }  # fmt: skip
            at = end
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + at)


def bare(family: Family) -> dict[str, Any]:
    """The networks of a family on the meta device."""
    with without_values():
        return {name: build() for name, build in networks(family).items()}
