"""Pictures in, pictures out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import InputError
from ldm.image import from_any, grid, mask_from_any, to_numpy, to_pil, to_unit, write
from tests.tiny import unit_noise

SIZE = (6, 4)  # width, height
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def frozen(array):
    array.flags.writeable = False
    return array


def test_one_picture_in_three_forms_is_one_tensor():
    array = PIXELS.astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1) * 2 - 1
    forms = [Image.fromarray(PIXELS), array, tensor, tensor[None], array.astype(np.float64)]
    for form in forms:
        found = from_any(form, SIZE)
        assert found.shape == (1, 3, 4, 6) and found.dtype == torch.float32
        assert torch.allclose(found[0], tensor, atol=1e-6)


def test_bytes_are_levels_in_every_form():
    expected = from_any(Image.fromarray(PIXELS), SIZE)
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    for form in (PIXELS, tensor, tensor[None]):
        assert torch.equal(from_any(form, SIZE), expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("turn", [np.flip, lambda x: x.astype(">f4"), np.asfortranarray, frozen])
def test_arrays_of_any_order_are_read(turn):
    array = turn(PIXELS.astype(np.float32) / 255)
    expected = torch.tensor(array.tolist()).permute(2, 0, 1)[None] * 2 - 1
    assert torch.allclose(from_any(array, SIZE), expected, atol=1e-6)


def test_a_picture_cut_short_is_told(tmp_path):
    Image.effect_noise((99, 99), 50).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    with Image.open(tmp_path / "b.png") as image, pytest.raises(InputError, match="image cannot be read"):
        from_any(image, SIZE)


def test_pixels_survive_the_way_in_and_out():
    images = to_unit(from_any(Image.fromarray(PIXELS), SIZE))
    assert np.array_equal(np.asarray(to_pil(to_numpy(images), [{}])[0]), PIXELS)


def test_every_kind_of_pil_image_becomes_colour():
    for mode in ("L", "RGBA", "P", "1", "CMYK", "LA"):
        assert from_any(Image.new(mode, SIZE), SIZE).shape == (1, 3, 4, 6)


def test_a_pil_image_is_brought_to_size():
    assert from_any(Image.new("RGB", (100, 70), "red"), SIZE)[0, :, 0, 0].tolist() == [1, -1, -1]


def test_a_turned_photograph_is_turned_back(tmp_path):
    picture = Image.fromarray(PIXELS.transpose(1, 0, 2)[::-1].copy())
    exif = picture.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    upright = from_any(Image.open(tmp_path / "a.png"), SIZE)
    assert torch.equal(upright, from_any(Image.fromarray(PIXELS), SIZE))


def test_a_mask_is_one_where_it_is_white():
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (0, 0, 2, 4))
    found = mask_from_any(mask, SIZE)
    assert found.shape == (1, 1, 4, 6) and found[0, 0, 0].tolist() == [1, 1, 0, 0, 0, 0]
    for form in (found, found[0], found[0, 0], found[0, 0, ..., None]):
        for kind in (form, form.bool(), (form * 255).byte(), form.double(), form.long()):
            assert torch.equal(mask_from_any(kind, SIZE), found)
            assert torch.equal(mask_from_any(kind.numpy(), SIZE), found)


def test_bytes_of_a_mask_are_shares_of_255():
    levels = np.arange(24, dtype=np.uint8).reshape(4, 6) * 11
    assert mask_from_any(levels, SIZE).numpy() == pytest.approx(levels[None, None] / 255)


@given(st.integers(1, 30))
def test_a_grid_has_room_for_all_and_no_empty_row(count):
    w, h = grid([Image.new("RGB", SIZE)] * count).size
    columns, rows = w // SIZE[0], h // SIZE[1]
    assert columns * rows >= count > columns * (rows - 1) and columns - rows in (0, 1)


def test_to_unit_clamps():
    assert to_unit(torch.tensor([-9.0, -1, 0, 1, 9])).tolist() == [0, 0, 0.5, 1, 1]


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    write(Image.fromarray(PIXELS), target)
    before = target.read_bytes()

    def fail(self, fp, *_, **__):
        fp.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(InputError, match="No space left"):
        write(Image.fromarray(PIXELS), target)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_noise_is_no_picture():
    with pytest.raises(InputError, match="outside"):
        from_any(unit_noise(0, 3, 4, 6), SIZE)
