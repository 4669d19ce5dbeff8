"""A save is complete or has changed nothing."""

import copy
import os
import pickle
import shutil

import pytest

import ldm
from ldm import CheckpointError, InputError
from tests import tiny


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=["original", "diffusers"])
def saved(request, file, folder, tmp_path):
    """A saved model in either layout, alone in its folder."""
    path = tmp_path / "place" / "model"
    path.parent.mkdir()
    if request.param == "original":
        shutil.copy(file, path)
    else:
        shutil.copytree(folder, path)
    return path, request.param


OTHER = tiny.make(seed=5)


def fail_after(monkeypatch, name, calls, error):
    """`os.<name>` of the library raises after some calls."""
    original, count = getattr(os, name), []

    def failing(*args, **options):
        count.append(1)
        if len(count) > calls:
            raise error
        return original(*args, **options)

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("calls", [0, 1, 7])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stop"]
)
def test_a_save_that_fails_leaves_the_old_model_and_nothing_else(saved, monkeypatch, calls, error):
    path, layout = saved
    if layout == "original" and calls:
        pytest.skip("a single file is synced once before it is in place")
    before = contents(path.parent)
    with monkeypatch.context() as patch:
        fail_after(patch, "fsync", calls, error)
        with pytest.raises((CheckpointError, KeyboardInterrupt)) as caught:
            ldm.save(OTHER, path, layout=layout)
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value) and path.name in str(caught.value)
    assert contents(path.parent) == before
    assert [p.name for p in path.parent.iterdir()] == ["model"]


def test_a_save_that_cannot_be_put_in_place_leaves_the_old_model(saved, monkeypatch):
    path, layout = saved
    before = contents(path.parent)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(13, "Permission denied")))
        with pytest.raises(CheckpointError, match="Permission denied"):
            ldm.save(OTHER, path, layout=layout)
    assert contents(path.parent) == before


def test_a_save_over_another_model_replaces_it_whole(saved):
    path, layout = saved
    ldm.save(OTHER, path, layout=layout)
    found = ldm.load(path)
    assert tiny.same(found.unet.state_dict(), OTHER.unet.state_dict())
    assert [p.name for p in path.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_folder_that_is_not_there_is_told(pipe, tmp_path, layout):
    with pytest.raises(CheckpointError, match="nowhere"):
        ldm.save(pipe, tmp_path / "nowhere" / "model", layout=layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_folder_that_may_not_be_written_is_told(pipe, tmp_path, layout):
    place = tmp_path / "place"
    place.mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot be written"):
        ldm.save(pipe, place / "model", layout=layout)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_device_that_takes_no_files_is_told(pipe, layout):
    with pytest.raises(CheckpointError, match="cannot be written"):
        ldm.save(pipe, "/proc/model", layout=layout)


def test_a_file_is_not_a_folder_and_a_folder_not_a_file(pipe, folder, tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(CheckpointError, match="is a file"):
        ldm.save(pipe, tmp_path / "file", layout="diffusers")
    with pytest.raises(CheckpointError, match="is a folder"):
        ldm.save(pipe, folder, layout="original")
    assert (tmp_path / "file").read_bytes() == b"1"


def test_a_folder_with_other_things_is_not_written_over(pipe, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"1")
    with pytest.raises(CheckpointError, match="other things"):
        ldm.save(pipe, tmp_path / "photos", layout="diffusers")
    assert contents(tmp_path / "photos") == {
        (tmp_path / "photos/mine.jpg").relative_to(tmp_path / "photos"): b"1"
    }


@pytest.mark.parametrize("layout", ["safetensors", "Original", 3, ["original"]])
def test_an_unknown_layout_is_refused_by_name(pipe, tmp_path, layout):
    with pytest.raises(InputError, match="layout"):
        ldm.save(pipe, tmp_path / "model", layout=layout)


@pytest.mark.parametrize("path", [3, None, b"model", []])
def test_a_path_is_a_path(pipe, path):
    with pytest.raises(InputError, match="path"):
        ldm.save(pipe, path)


def test_the_usual_layout_is_that_of_the_source(file, folder, tmp_path):
    ldm.save(ldm.load(folder), tmp_path / "a")
    ldm.save(ldm.load(file), tmp_path / "b")
    ldm.save(tiny.make(), tmp_path / "c")
    assert (tmp_path / "a").is_dir() and (tmp_path / "b").is_file() and (tmp_path / "c").is_file()


def test_saving_twice_writes_the_same_bytes(pipe, tmp_path):
    for name in ("a", "b"):
        ldm.save(pipe, tmp_path / f"{name}.safetensors")
        ldm.save(pipe, tmp_path / name, layout="diffusers")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_name_that_ends_in_safetensors_is_one_file(folder, tmp_path):
    pipe = ldm.load(folder)
    ldm.save(pipe, tmp_path / "copy.safetensors")
    assert (tmp_path / "copy.safetensors").is_file()
    with pytest.raises(InputError, match="'diffusers' is a folder"):
        ldm.save(pipe, tmp_path / "b.safetensors", layout="diffusers")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_link_is_followed(saved, tmp_path):
    path, layout = saved
    link = tmp_path / "link"
    link.symlink_to(path)
    ldm.save(OTHER, link, layout=layout)
    assert link.is_symlink() and not path.is_symlink()
    assert tiny.same(ldm.load(path).unet.state_dict(), OTHER.unet.state_dict())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "place"]
    assert [p.name for p in path.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model.bin",
    ],
)
def test_other_weights_of_the_old_model_are_neither_deleted_nor_left_beside_the_new(folder, tmp_path, name):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    (path / name).write_bytes(b"1")
    before = contents(path)
    with pytest.raises(CheckpointError, match="remove it, or give a new folder") as caught:
        ldm.save(OTHER, path, layout="diffusers")
    assert name in str(caught.value) and contents(path) == before
    (path / name).unlink()
    (path / "unet/diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"1")
    ldm.save(OTHER, path, layout="diffusers")
    assert contents(path).keys() == contents(folder).keys()


def test_a_copied_pipeline_is_saved_like_the_first(pipe, tmp_path):
    for name, one in (("a.safetensors", pipe), ("b.safetensors", copy.deepcopy(pipe))):
        ldm.save(one, tmp_path / name)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert pickle.loads(pickle.dumps(pipe.family)) == pipe.family
