"""Safetensors files: read as the reference implementation writes them; the unsound are refused by name."""

import json
import pickle
import struct
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ldm
from ldm import CheckpointError
from ldm.checkpoint.files import File, write
from tests.tiny import hollow, lines, raw, same

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor([1.5, -2], dtype=torch.float16),
    "c.d": torch.tensor([[7]], dtype=torch.int64),
    "é": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
    "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
}


def tensors_of(path, read="view"):
    file = File.open(path)
    return {name: getattr(file, read)(name) for name in file.entries}


@pytest.mark.parametrize("read", ["view", "read"])
def test_files_of_the_reference_implementation_are_read(tmp_path, read):
    save_file(TENSORS, tmp_path / "a.safetensors", {"format": "pt", "title": "x"})
    assert same(tensors_of(tmp_path / "a.safetensors", read), TENSORS)
    assert File.open(tmp_path / "a.safetensors").metadata == {"format": "pt", "title": "x"}


def test_the_reference_implementation_reads_our_files(tmp_path):
    write(tmp_path / "a.safetensors", TENSORS, {"format": "pt"})
    assert same(load_file(tmp_path / "a.safetensors"), TENSORS)


def test_our_files_are_those_of_the_reference_implementation_byte_for_byte(tmp_path):
    tensors = {name: TENSORS[name] for name in ("b", "a", "c.d")}
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    write(tmp_path / "ours", tensors, {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("pad", range(9))
def test_old_headers_of_any_length_are_read(tmp_path, pad):
    tensors = {"a": TENSORS["b"], "b": TENSORS["c.d"]}
    header = json.dumps(lines({"a": ("F32", (2, 3)), "b": ("I64", (1, 1))})) + " " * pad
    data = b"".join(t.numpy().tobytes() for t in tensors.values())
    path = raw(tmp_path / "old.safetensors", header, data)
    assert same(tensors_of(path), tensors) and same(tensors_of(path, "read"), tensors)


def test_views_share_the_file_and_reads_do_not(tmp_path):
    write(tmp_path / "a", {"x": torch.zeros(4096)}, {})
    file = File.open(tmp_path / "a")
    view, copy = file.view("x"), file.read("x")
    with (tmp_path / "a").open("rb+") as out:
        out.seek(file.entries["x"].start)
        out.write(struct.pack("<f", 7))
    assert copy[0] == 0 and file.view("x").data_ptr() == view.data_ptr()
    assert view[0] == 7


def test_writing_to_a_view_never_reaches_the_file(tmp_path):
    write(tmp_path / "a", {"x": torch.zeros(8)}, {})
    before = (tmp_path / "a").read_bytes()
    File.open(tmp_path / "a").view("x").fill_(3)
    assert (tmp_path / "a").read_bytes() == before


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        File.open(path)
    message = str(caught.value)
    assert all(word in message for word in (path.name, *words)), message
    with pytest.raises(CheckpointError, match=path.name):
        ldm.inspect(path)
    with pytest.raises(CheckpointError, match=path.name):
        ldm.load(path)


WRONG = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "xml": (b"<?xml version='1.0'?><Error/>" * 3, "HTML or XML"),
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265146304\n",
        "git lfs pull",
    ),
    "gguf": (b"GGUF\x03\x00\x00\x00" + b"\x00" * 64, "GGUF"),
    "json": (b'{"error": "not found"}', "not a safetensors file"),
    "text": (b"Not Found", "not a safetensors file"),
    "short": (b"\x10\x00", "truncated after 2 bytes"),
    "cut": (b"\x10\x00\x00\x00\x00\x00\x00\x00", "truncated: its header needs 24 bytes of 8"),
    "absurd": (b"\xff" * 20, "a header of 18446744073709551615 bytes"),
    "zeros": (b"\x00" * 100, "not a safetensors file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_safetensors_file_is_named_for_what_it_is(tmp_path, kind):
    content, word = WRONG[kind]
    path = tmp_path / f"{kind}.safetensors"
    path.write_bytes(content)
    refused(path, word)


class Payload:
    """An object whose unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["pickle", "zip", "torch", "old torch"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".bin"])
def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path, kind, suffix):
    path, trap = tmp_path / f"a{suffix}", tmp_path / "trap"
    payload = {"state_dict": Payload(trap)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(payload))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=kind == "torch")
    refused(path, "as safetensors")
    assert not trap.exists()


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(content)
    refused(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        ldm.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match="nowhere"):
        ldm.inspect(tmp_path / "nowhere.safetensors")


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_refused(tmp_path_factory, cut):
    folder = tmp_path_factory.getbasetemp()
    write(folder / "whole", {"a": torch.ones(40), "b": torch.ones(3)}, {"format": "pt"})
    content = (folder / "whole").read_bytes()
    path = folder / "cut.safetensors"
    path.write_bytes(content[: int(cut * len(content))])
    refused(path)


def test_bytes_behind_the_last_tensor_are_refused(tmp_path):
    write(tmp_path / "a.safetensors", {"a": torch.ones(4)}, {})
    with (tmp_path / "a.safetensors").open("ab") as file:
        file.write(b"1234")
    refused(tmp_path / "a.safetensors", "4 bytes behind")


def entry(start, end, shape=(1,), dtype="F32"):
    return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]})


HEADERS = {
    "twice": (f'{{"x": {entry(0, 4)}, "x": {entry(4, 8)}}}', "'x' twice"),
    "overlap": (f'{{"x": {entry(0, 8, (2,))}, "y": {entry(4, 8)}}}', "y"),
    "same place": (f'{{"x": {entry(0, 4)}, "y": {entry(0, 4)}}}', "y"),
    "gap": (f'{{"x": {entry(0, 4)}, "y": {entry(8, 12)}}}', "y"),
    "late": (f'{{"x": {entry(4, 8)}}}', "x"),
    "backwards": (f'{{"x": {entry(4, 0)}}}', "x"),
    "wrong size": (f'{{"x": {entry(0, 4, (2,))}}}', "x"),
    "beyond": (f'{{"x": {entry(0, 400, (100,))}}}', "truncated"),
    "negative": (f'{{"x": {entry(-4, 0)}}}', "x"),
    "negative shape": (f'{{"x": {entry(0, 4, (-1, -1))}}}', "x"),
    "float shape": (f'{{"x": {entry(0, 4, (1.0,))}}}', "x"),
    "true shape": (f'{{"x": {entry(0, 4, (True,))}}}', "x"),
    "unknown dtype": (f'{{"x": {entry(0, 4, (1,), "F128")}}}', "F128"),
    "dtype a list": ('{"x": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', "x"),
    "three offsets": ('{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}', "x"),
    "no shape": ('{"x": {"dtype": "F32", "data_offsets": [0, 4]}}', "x"),
    "shape a number": ('{"x": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}', "x"),
    "a number": ('{"x": 3}', "x"),
    "null": ('{"x": null}', "x"),
    "metadata a list": (f'{{"__metadata__": [], "x": {entry(0, 4)}}}', "__metadata__"),
    "metadata of numbers": (f'{{"__metadata__": {{"a": 1}}, "x": {entry(0, 4)}}}', "__metadata__"),
    "half": ('{"x": {"dtype": "F32"', "damaged"),
    "rest": ("{} {}", "damaged"),
    "deep": ('{"x":' + "[" * 100_000, "damaged"),
    "digits": ('{"x":' + "1" * 5000 + "}", "damaged"),
    "not utf-8": ('{"\udcff": 1}', "damaged"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_an_unsound_header_is_refused_by_key(tmp_path, kind):
    header, word = HEADERS[kind]
    text = header.encode("utf-8", "surrogateescape")
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8 if kind in ("twice", "overlap") else 4))
    refused(path, word)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 101 * 2**20, 10**6])
def test_a_header_longer_than_the_file_is_refused_without_reading_it(tmp_path, length):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"x": 1}')
    refused(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write(path, {"a": torch.ones(4)}, {})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm.checkpoint.files.os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write(path, {"a": torch.zeros(4)}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write(path, {"a": torch.ones(4)}, {})
    before = path.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ldm.checkpoint.files.os.fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write(path, {"a": torch.zeros(4)}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_hollow_files_are_sound(tmp_path):
    path = hollow(tmp_path / "a", {"x": ("F16", (3, 5)), "y": ("F32", ())})
    assert {name: entry.shape for name, entry in File.open(path).entries.items()} == {"x": (3, 5), "y": ()}
