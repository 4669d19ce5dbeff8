"""What of a network lies in files, and that giving it back loses nothing."""

import re
import sys
from pathlib import Path

import pytest
import torch

import ldm
from ldm.pages import Range, forget, joined, mapped, unwritten
from tests.tiny import unit_noise

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
COUNT = 2**22  # numbers, 16 MB


def resident() -> int:
    """Bytes of mapped files in memory."""
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.fixture
def weight(tmp_path):
    """A tensor that maps a file, as loaded ones do."""
    path = tmp_path / "weight.bin"
    unit_noise(0, COUNT).numpy().tofile(path)
    return torch.from_file(str(path), shared=False, size=COUNT)


def test_neighbours_are_given_back_together():
    assert joined([Range(8192, 9000), Range(0, 4096), Range(4096, 8000)]) == [Range(0, 9000)]
    assert joined([Range(0, 4096), Range(4096 * 3, 4096 * 4)]) == [Range(0, 4096), Range(12288, 16384)]


def test_what_was_read_is_given_back_and_read_again(weight):
    wanted = unit_noise(0, COUNT)
    pages = mapped([weight], unwritten())
    assert sum(end - first for first, end in pages) == 4 * COUNT
    assert torch.equal(weight, wanted)
    before = resident()
    forget(pages)
    assert before - resident() > 3 * COUNT
    assert torch.equal(weight, wanted)


def test_what_was_written_to_is_not_given_back(weight):
    weight[5] = 7.0
    forget(mapped([weight], unwritten()))
    assert weight[5] == 7.0


def test_memory_of_no_file_is_left_alone():
    kept = unit_noise(1, COUNT)
    same = kept.clone()
    assert not mapped([kept], unwritten())
    forget(mapped([kept], unwritten()))
    assert torch.equal(kept, same)


def test_a_part_of_a_tensor_gives_back_no_more_than_its_pages(weight):
    (first, end), *more = mapped([weight[1000:5000]], unwritten())
    assert not more and weight.data_ptr() + 4000 <= first < end <= weight.data_ptr() + 20000


def test_a_system_that_cannot_tell_gives_nothing_back(weight, monkeypatch, tmp_path):
    monkeypatch.setattr("ldm.pages.MAPS", tmp_path / "none")
    assert not mapped([weight], unwritten())


def test_a_packed_model_rests_between_pictures(tmp_path):
    path = tmp_path / "shapes.safetensors"
    ldm.save(ldm.load(), path, dtype=torch.float32)  # as it is loaded, so that it is mapped
    options = {"seed": 1, "num_inference_steps": 2, "output_type": "np", "progress": False}
    pipe = ldm.load(path, fast=True)
    first = pipe("a red circle", **options).images
    assert all(w.isfinite().all() for w in pipe.text_encoders[0].parameters())  # read just now
    before = resident()
    pipe.rest()
    assert resident() < before
    assert (pipe("a red circle", **options).images == first).all()


def test_plain_models_are_left_alone(monkeypatch):
    monkeypatch.setattr("ldm.model.forget", lambda _: pytest.fail("nothing is to be given back"))
    ldm.load()("a red circle", num_inference_steps=1, progress=False)
