"""Features of files and folders, what looks at pictures, and what is refused."""

import io
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ldm.errors import CheckpointError, DeviceError, InputError
from ldm.evaluation.extractors import extractor, pixels
from ldm.evaluation.features import from_file, from_folder
from tests.training.albums import picture, png, write

TABLE = np.random.default_rng(0).normal(size=(7, 3))


def look(folder, extract=pixels, **options):
    return from_folder(folder, extract, progress=False, **options)


# files


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int32])
def test_features_come_from_files(tmp_path, dtype):
    table = (10 * TABLE).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(table))
    save_file({"any name": torch.from_numpy(table)}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.safetensors"):
        found = from_file(tmp_path / name)
        assert found.dtype == torch.float64 and np.array_equal(found.numpy(), table.astype(np.float64))


def array(value, allow_pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=allow_pickle)
    return buffer.getvalue()


def archive():
    buffer = io.BytesIO()
    np.savez(buffer, a=TABLE, b=TABLE)
    return buffer.getvalue()


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


ODD_FILES = {
    "cut.npy": (array(TABLE)[:-8], "cut.npy cannot be read as an array"),
    "empty.npy": (b"", "empty.npy cannot be read as an array"),
    "noise.npy": (b"\x93NUMPY\x01\x00\xff\xff{", "noise.npy cannot be read as an array"),
    "objects.npy": (array(np.array([Trap()], object), allow_pickle=True), "cannot be read as an array"),
    "pickle.npy": (pickle.dumps(Trap()), "cannot be read as an array"),
    "many.npy": (archive(), "many.npy is an archive of arrays"),
    "vector.npy": (array(TABLE[0]), r"vector.npy must be a table \[n d\]"),
    "holes.npy": (array(np.full((2, 2), np.nan)), "holes.npy: 4 of 4 numbers are NaN"),
    "table.csv": (b"1,2,3", "table.csv must end in .safetensors or .npy"),
}


@pytest.mark.parametrize(("name", "data", "sentence"), [(k, *v) for k, v in ODD_FILES.items()], ids=ODD_FILES)
def test_files_without_one_table_are_refused(tmp_path, name, data, sentence):
    write(tmp_path, {name: data})
    with pytest.raises(InputError, match=sentence):
        from_file(tmp_path / name)


def test_safetensors_without_one_table_are_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, file)
    with pytest.raises(InputError, match=r"has 2 tensors \(a, b\)"):
        from_file(file)
    save_file({"a": torch.ones(2, 2, 2)}, file)
    with pytest.raises(InputError, match=r"a.safetensors: a must be a table"):
        from_file(file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        from_file(file)
    with pytest.raises(InputError, match="neither a file of features nor a folder"):
        from_file(tmp_path / "none.npy")


# folders


@pytest.fixture
def album(tmp_path):
    """Seven pictures of two sizes, one of them a folder deeper, and what does not count."""
    sizes = [(16, 16), (16, 16), (24, 16), (24, 16), (16, 16), (16, 16), (24, 16)]
    files = {f"{i}.png": png(i, size) for i, size in enumerate(sizes)}
    files["deep/6.png"] = files.pop("6.png")
    return write(tmp_path / "album", {**files, ".hidden.png": b"", ".git/a.png": b"", "a.txt": "a cat"})


def names_of(found, sizes):
    """Which pictures rows of features belong to."""
    wanted = [look_at(picture(i, size)) for i, size in enumerate(sizes)]
    return [next(i for i, w in enumerate(wanted) if torch.allclose(row, w, atol=1e-6)) for row in found]


def look_at(image):
    x = torch.from_numpy(np.array(image)).float() / 127.5 - 1
    return pixels(x.permute(2, 0, 1)[None])[0]


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_every_picture_of_a_folder_counts_once_in_the_order_of_names(album, batch):
    found = look(album, batch=batch)
    sizes = [(16, 16), (16, 16), (24, 16), (24, 16), (16, 16), (16, 16), (24, 16)]
    assert names_of(found, sizes) == [0, 1, 2, 3, 4, 5, 6]


def test_pictures_are_whole_and_neighbours_of_one_size_together(album):
    shapes = []
    look(album, lambda images: shapes.append(tuple(images.shape)) or pixels(images), batch=2)
    assert shapes == [(2, 3, 16, 16), (2, 3, 16, 24), (2, 3, 16, 16), (1, 3, 16, 24)]


def test_images_are_float32_from_minus_one_to_one(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    write(tmp_path, {})
    Image.fromarray(levels).save(tmp_path / "a.png")
    seen = []
    look(tmp_path, lambda images: seen.append(images) or pixels(images))
    (x,) = seen
    assert x.dtype == torch.float32 and (x.min(), x.max()) == (-1, 1) and not x.requires_grad
    assert torch.equal(((x[0, 0] + 1) * 127.5).round(), torch.arange(256.0).reshape(16, 16))


def test_pixels_are_means_over_fields(tmp_path):
    fields = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(fields).resize((24, 40), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    found = look(tmp_path)
    assert found.shape == (1, 192)
    wanted = torch.from_numpy(fields / 127.5 - 1).permute(2, 0, 1).flatten()
    assert torch.allclose(found[0].double(), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["0.png", "deep/6.png"])
@pytest.mark.parametrize("data", [b"", b"not a picture", png(0)[:200]], ids=["empty", "other", "cut"])
def test_a_damaged_picture_is_named(album, name, data):
    write(album, {name: data})
    with pytest.raises(InputError, match=rf"{name} cannot be read as a picture: .*; (take it out|give)"):
        look(album)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no pictures; put some in"):
        look(write(tmp_path / "a", {"a.txt": "", ".b.png": png(0)}))
    with pytest.raises(InputError, match="none is not a folder"):
        look(tmp_path / "none")
    with pytest.raises(InputError, match="batch must be from 1"):
        look(tmp_path / "a", batch=0)


@pytest.mark.parametrize(
    ("extract", "sentence"),
    [
        (lambda images: images.mean((1, 2, 3)), r"must be \[2 d\] of real numbers, not a tensor \(2,\)"),
        (lambda images: pixels(images)[:1], r"must be \[2 d\] of real numbers, not a tensor \(1, 192\)"),
        (lambda images: pixels(images).numpy(), r"must be \[2 d\] of real numbers, not an array"),
        (lambda images: None, "not None"),
        (lambda images: images[:, 0, 0], r"have 16 numbers, but 24 of pictures of 24×16 pixels"),
    ],
)
def test_what_gives_no_features_is_refused(album, extract, sentence):
    with pytest.raises(InputError, match=sentence):
        look(album, extract)


# what looks at pictures


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("inception", "features cannot be 'inception'; there are pixels, clip:FOLDER, "),
        ("clip", "features cannot be 'clip'"),
        ("clip:", "features cannot be 'clip:'"),
        ("fidelity:", "features cannot be 'fidelity:'"),
        ("mine.py", r"features cannot be 'mine\.py'"),
        ("mine.py:", r"features cannot be 'mine\.py:'"),
        ("none.py:f", r"none\.py is not a file"),
        ("clip:none", "none has no config.json"),
    ],
)
def test_names_of_nothing_are_refused(name, sentence):
    with pytest.raises(InputError, match=sentence):
        extractor(name)
    with pytest.raises(DeviceError):
        extractor("pixels", "nowhere")


def test_a_function_of_one_s_own(album):
    file = album / "mine.py"
    file.write_text("import torch\n\ndef brightness(images):\n    return images.mean((2, 3))\n")
    found = look(album, extractor(f"{file}:brightness"))
    assert found.shape == (7, 3)
    assert torch.allclose(found, look(album, lambda images: images.mean((2, 3))))


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("def see(x): return x", r"has no function sees; did you mean 'see'\?"),
        ("sees = 3", "has no function sees; there are "),
        ("1 / 0", r"mine\.py cannot be run: ZeroDivisionError: division by zero"),
        ("def sees(:", r"mine\.py cannot be run: SyntaxError"),
        ("def sees(x): return x.wrong", r"mine\.py:sees fails on images \[2, 3, 16, 16\]: AttributeError"),
    ],
)
def test_functions_that_fail_are_told_of(album, code, sentence):
    (album / "mine.py").write_text(code)
    with pytest.raises(InputError, match=sentence):
        look(album, extractor(f"{album / 'mine.py'}:sees"))


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    """A small CLIP with random weights, as transformers saves it."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=8, projection_dim=12,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("clip")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_clip_sees_what_transformers_sees(eye, album):
    found = look(album, extractor(f"clip:{eye}"))
    model = CLIPVisionModelWithProjection.from_pretrained(eye).eval()
    prepare = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    sizes = [(16, 16), (16, 16), (24, 16), (24, 16), (16, 16), (16, 16), (24, 16)]
    every = [picture(i, size) for i, size in enumerate(sizes)]
    with torch.no_grad():
        wanted = torch.cat([model(**prepare(image, return_tensors="pt")).image_embeds for image in every])
    assert found.shape == (7, 12)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found[0], wanted[1], atol=1e-3)


def test_a_clip_without_an_eye_is_refused(eye, tmp_path, monkeypatch):
    model = CLIPVisionModelWithProjection.from_pretrained(eye)
    weights = {name: value for name, value in model.state_dict().items() if "visual_projection" not in name}
    (tmp_path / "config.json").write_text((eye / "config.json").read_text())
    with pytest.raises(InputError, match=r"clip:.* cannot be loaded: OSError"):
        extractor(f"clip:{tmp_path}")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 tensors of CLIP's eye, such as visual_projection\.weight"):
        extractor(f"clip:{tmp_path}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers, .*pip install 'ldm\[eval\]'"):
        extractor(f"clip:{eye}")


class Inception(nn.Module):
    """What torch-fidelity 0.3 and 0.4 have under this name, as far as it is used."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])
        if feature_extractor_weights_path is None:
            raise OSError("no network")
        torch.load(feature_extractor_weights_path)

    def forward(self, images):
        assert images.dtype == torch.uint8
        return (images.float().mean((2, 3)),)


def test_fidelity_is_given_the_levels_that_were_read(album, tmp_path, monkeypatch):
    fake = ModuleType("torch_fidelity")
    fake.FeatureExtractorInceptionV3 = Inception
    monkeypatch.setitem(sys.modules, "torch_fidelity", fake)
    torch.save({}, tmp_path / "weights.pth")
    found = look(album, extractor(f"fidelity:{tmp_path / 'weights.pth'}"))
    assert torch.allclose(found[0], torch.from_numpy(np.array(picture(0, (16, 16)))).float().mean((0, 1)))
    with pytest.raises(InputError, match="fetched by torch-fidelity, cannot be had: OSError: no network"):
        extractor("fidelity")
    with pytest.raises(InputError, match=r"none\.pth, cannot be had: FileNotFoundError"):
        extractor("fidelity:none.pth")


def test_fidelity_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"fidelity needs torch-fidelity, .*pip install 'ldm\[eval\]'"):
        extractor("fidelity")
