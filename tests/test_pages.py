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


@pytest.fixture
def mapped_unet(tmp_path):
    """A packed UNet whose weights lie in a file, and how much is in memory of it after a step."""
    path = tmp_path / "shapes.safetensors"
    ldm.save(ldm.load(), path, dtype=torch.float32)
    pipe = ldm.load(path, fast=True)
    pipe("a red circle", num_inference_steps=1, progress=False)
    return pipe


def test_levels_give_their_pages_back(mapped_unet, monkeypatch):
    unet = mapped_unet.unet
    inputs = unit_noise(0, 1, unet.config.in_channels, 16, 16), torch.tensor([500.0])
    context = unit_noise(1, 1, 20, unet.config.context_dim)
    with torch.no_grad():
        mapped_unet.rest()
        wanted, least = unet(*inputs, context), resident()
        monkeypatch.setattr("ldm.packed.forget", lambda pages: None)
        assert torch.equal(unet(*inputs, context), wanted)
    assert resident() > least + 2**20


def test_what_was_changed_after_packing_is_refused_and_not_lost(mapped_unet):
    unet = mapped_unet.unet
    weight = unet.down[0].res[0].norm1.weight
    linears = (module for module in unet.down[1].modules() if isinstance(module, torch.nn.Linear))
    linear = next(module for module in linears if module.weight.numel() > 9999)
    with torch.no_grad():
        linear.weight.zero_()
    with pytest.raises(ldm.LdmError, match="weights were changed after they were packed"):
        mapped_unet("a red circle", num_inference_steps=1, progress=False)
    assert not linear.weight.any() and weight.isfinite().all()


def test_weights_that_took_the_place_of_others_are_left_alone(tmp_path):
    """The pages given back are those of the file, whose place nothing else can take."""
    path = tmp_path / "shapes.safetensors"
    ldm.save(ldm.load(), path, dtype=torch.float32)
    pipe = ldm.load(path, fast=True)
    options = {"num_inference_steps": 1, "progress": False, "output_type": "np", "seed": 1}
    wanted = pipe("a red circle", **options).images
    state = {name: w.clone() for name, w in pipe.unet.state_dict().items()}
    pipe.unet.load_state_dict(state, assign=True)
    others = [torch.full((2**18,), 7.0) for _ in range(64)]
    assert (pipe("a red circle", **options).images == wanted).all()
    assert all((x == 7.0).all() for x in others)


def test_what_the_system_says_of_files(monkeypatch, tmp_path):
    """Of three mappings one was written to, and another was and is swapped out."""
    said = tmp_path / "smaps"
    monkeypatch.setattr("ldm.pages.MAPS", said)
    told = [("1000-3000", 5, 0, 0), ("4000-6000", 5, 8, 0), ("7000-9000", 5, 0, 8), ("a000-c000", 0, 8, 0),
            ("d000-f000", 7, 0, 0)]  # fmt: skip
    lines = [
        f"{place} rw-p 00000000 fe:00 {inode} /some/file\nSize: 8 kB\nAnonymous: {own} kB\nSwap: {out} kB"
        for place, inode, own, out in told
    ]
    said.write_text("\n".join(lines))
    assert unwritten() == [Range(0x1000, 0x3000), Range(0xD000, 0xF000)]
