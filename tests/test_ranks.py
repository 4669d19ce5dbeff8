"""Several processes of one run: who is who, what they do together, and what is told where that fails."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm.errors import DeviceError, InputError
from ldm.ranks import NAMES, Ranks, joined

ROOT = Path(__file__).parents[1]
WHOLE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
PAIR = """
import json, os, sys, torch
from ldm.errors import LdmError
from ldm.ranks import joined

first = os.fork()
os.environ |= {"RANK": "0" if first else "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0" if first else "1"}
with joined("cpu") as ranks:
    own = torch.tensor([1.0, 10.0]) * (1 + ranks.rank)
    told = [ranks.rank, ranks.size, ranks.first, ranks.device.type, ranks.mean(own).tolist(), own.tolist()]
    ranks.wait()
    if not ranks.first:
        print(json.dumps(told), flush=True)
        os._exit(0)
    os.waitpid(first, 0)
    print(json.dumps(told))
    for alone in (ranks.wait, lambda: ranks.mean(own)):
        try:
            alone()
        except LdmError as error:
            print(json.dumps(str(error)))
"""


@pytest.fixture(autouse=True)
def nobody_elses(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_a_process_is_alone():
    with joined("cpu") as ranks:
        assert ranks == Ranks(0, 1, torch.device("cpu")) and ranks.first
        values = torch.tensor([1.0, 2.0])
        ranks.wait()
        assert ranks.mean(values).tolist() == [1, 2]
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("given", "word"),
    [
        *(({name: "1"}, name) for name in NAMES),
        *(({other: "0" for other in NAMES if other != name}, f"{name}=None") for name in NAMES),
        (WHOLE | {"RANK": "first"}, "RANK=first"),
        (WHOLE | {"WORLD_SIZE": ""}, "WORLD_SIZE="),
        (WHOLE | {"LOCAL_RANK": "0.5"}, "LOCAL_RANK=0.5"),
    ],
    ids=str,
)
def test_what_torchrun_did_not_set_is_one_sentence(monkeypatch, given, word):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=word), joined("cpu"):
        pytest.fail("it was joined")


@pytest.mark.parametrize(
    "device", ["cuda:99", "tpu", "meta", *([] if torch.cuda.is_available() else ["cuda"])]
)
def test_a_device_that_is_not_there_is_told(device):
    with pytest.raises(DeviceError, match="try device"), joined(device):
        pytest.fail("it was joined")


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (WHOLE | {"LOCAL_RANK": "2", "MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=r"process 3 .* no GPU of 2"), joined():
        pytest.fail("it was joined")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the second process is a fork")
def test_two_processes_share_their_means_and_notice_an_end():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", PAIR],
        env=os.environ
        | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    second, first, *lost = map(json.loads, done.stdout.splitlines())
    assert first == [0, 2, True, "cpu", [1.5, 15], [1, 10]]
    assert second == [1, 2, False, "cpu", [1.5, 15], [2, 20]]
    assert len(lost) == 2 and all("process 1 of 2 lost another" in said for said in lost)
