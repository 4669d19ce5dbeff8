"""Legacy `.ckpt` files: the same tensors as torch reads, and nothing is ever executed."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import ldm
from ldm.checkpoint.files import File
from ldm.cli import main
from ldm.errors import CheckpointError
from tests.tiny import BARE, make, read_all


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


def test_every_tensor_is_what_torch_reads(tmp_path: Path):
    base = torch.arange(24.0)
    state = OrderedDict(
        a=torch.randn(3, 4), half=torch.randn(5).half(), bf=torch.randn(2, 2).bfloat16(), ids=torch.arange(7),
        scalar=torch.tensor(3.5), none=torch.empty(0, 3), part=base[6:12].reshape(2, 3), whole=base,
        parameter=torch.nn.Parameter(torch.randn(2, 5)), thin=torch.randn(4, 1)[:, :1],
    )  # fmt: skip
    training = {
        "state_dict": state,
        "epoch": 3,
        "lr": [1e-4, None, True],
        "global_step": 2**40,
        "x": (1, 2, 3, 4),
    }
    for content in (state, training):
        file = File.open(saved(tmp_path / "model.ckpt", content))
        assert file.entries.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(file.view(name), tensor) and torch.equal(file.read(name), tensor)
            assert file.view(name).dtype == tensor.dtype


def test_a_model_loads_from_a_ckpt_and_saves_as_safetensors(tmp_path: Path):
    ldm.save(make(BARE, merges=ldm.clip.Tokenizer.openai().merges), tmp_path / "m.safetensors")
    tensors = read_all(tmp_path / "m.safetensors")
    ckpt = saved(tmp_path / "m.ckpt", {"state_dict": tensors, "global_step": 1})
    report = ldm.inspect(ckpt)
    assert report.family == "sd1" and not report.missing and not report.unexpected
    assert main(["convert", str(ckpt), str(tmp_path / "again.safetensors")]) == 0
    again = read_all(tmp_path / "again.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert main(["convert", str(ckpt), str(tmp_path / "folder-1.5"), "--dtype", "fp16"]) == 0
    assert ldm.inspect(tmp_path / "folder-1.5").dtypes.keys() == {"F16"}
    assert main(["convert", str(ckpt), str(tmp_path / "again.ckpt")]) == 2
    assert not (tmp_path / "again.ckpt").exists()


class Payload:
    def __init__(self, maker, *arguments):
        self.made = maker, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("where", ["value", "key", "beside", "attribute"])
def test_a_payload_is_named_and_not_executed(tmp_path: Path, where: str):
    trace = tmp_path / "trace"
    bad = Payload(os.system, f"touch {trace}")
    state = OrderedDict(a=torch.zeros(2))
    content = {
        "value": {"state_dict": {"a": bad}},
        "key": {"state_dict": state, Payload(eval, "1"): 1},
        "beside": {"state_dict": state, "callbacks": [bad]},
        "attribute": {"state_dict": state, "x": Payload(getattr, "a", "upper")},
    }[where]
    path = saved(tmp_path / "bad.ckpt", content)
    with pytest.raises(CheckpointError, match=r"(system|eval|getattr).*Nothing was executed"):
        ldm.load(path)
    assert not trace.exists()


PICKLE_TRICKS = {
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "instance": b"(S'true'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'true'\no.",
    "new object": b"\x80\x02cos\nsystem\n)\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "dotted": b"\x80\x04\x8c\x05torch\x8c\x11_utils.os.system\x93.",
    "bare reduce": b"\x80\x02X\x04\x00\x00\x00true)R.",
    "no end": b"\x80\x02}",
    "empty stack": b"\x80\x02R.",
    "unknown memo": b"\x80\x02h\x05.",
    "build": b"\x80\x02}cos\nsystem\nb.",
}


def archive(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None, **options: object) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in (storages or {}).items():
            file.writestr(f"archive/data/{name}", data)
    return path


@pytest.mark.parametrize("pickled", PICKLE_TRICKS.values(), ids=PICKLE_TRICKS)
def test_tricks_of_the_pickle_language(tmp_path: Path, pickled: bytes):
    with pytest.raises(CheckpointError, match=r"bad\.ckpt"):
        File.open(archive(tmp_path / "bad.ckpt", pickled))


def state_of(shape=(2, 3), stride=(3, 1), offset=0, count=6, kind="FloatStorage", key="0") -> bytes:
    """A pickle with one tensor, by torch's own words."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return ("storage", getattr(torch, kind), key, "cpu", count) if item == "here" else None

    out = io.BytesIO()
    made = Payload(torch._utils._rebuild_tensor_v2, "here", offset, shape, stride, False, OrderedDict())
    Pickler(out, protocol=2).dump({"w": made})
    return out.getvalue()


DATA = struct.pack("<6f", *range(6))


def test_the_hand_made_archive_is_sound(tmp_path: Path):
    file = File.open(archive(tmp_path / "good.ckpt", state_of(), {"0": DATA}))
    assert file.read("w").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"stride": (1, 2)}, "strides"),
        ({"stride": (0, 0)}, "strides"),
        ({"stride": (3,)}, "damaged"),
        ({"offset": 1}, "beyond"),
        ({"offset": -1}, "impossible"),
        ({"shape": (2, 2**40), "stride": (2**40, 1)}, "beyond"),
        ({"count": 12, "shape": (4, 3)}, "24 bytes"),
        ({"count": 4, "shape": (2, 2), "stride": (2, 1)}, "24 bytes"),
        ({"key": "1"}, "missing"),
        ({"key": "../../etc/passwd"}, "missing"),
    ],
    ids=str,
)
def test_a_tensor_that_is_not_where_it_says(tmp_path: Path, said: dict, word: str):
    with pytest.raises(CheckpointError, match=word):
        File.open(archive(tmp_path / "bad.ckpt", state_of(**said), {"0": DATA}))


def test_deflated_members_and_bombs_are_refused(tmp_path: Path):
    bomb = archive(tmp_path / "bomb.ckpt", state_of(), {"0": bytes(10**8)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10**6
    with pytest.raises(CheckpointError, match="compressed"):
        File.open(bomb)


def test_a_truncated_archive_is_refused(tmp_path: Path):
    path = saved(tmp_path / "model.ckpt", {"a": torch.randn(1000)})
    whole = path.read_bytes()
    for keep in (10, 200, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match=r"model\.ckpt"):
            File.open(path)


def test_other_things_in_a_state_dict_are_refused(tmp_path: Path):
    for content in ({"state_dict": {"a": 3}}, {"a": {"b": torch.zeros(1)}}, [torch.zeros(1)]):
        with pytest.raises(CheckpointError, match="state dict"):
            File.open(saved(tmp_path / "model.ckpt", content))


def test_a_pickle_without_an_archive_is_refused(tmp_path: Path):
    path = saved(tmp_path / "old.ckpt", {"a": torch.zeros(1)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="never executed"):
        ldm.load(path)
