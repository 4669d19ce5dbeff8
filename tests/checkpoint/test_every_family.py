"""A small model of every family: found out from its tensors, saved, loaded and run."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import ldm
from ldm import CheckpointError
from ldm.families import FAMILIES
from tests.reduced import FEW, REDUCED, each, saved
from tests.tiny import read_all, same, unit_noise

GUESSED = {"sd2": "sd2-v", "sdxl-turbo": "sdxl"}  # what tensors cannot tell, to how they are taken
FOLDERS = [
    name for name in REDUCED if name.startswith("sd") or name in ("ldm-text2img", "ldm-celeba256", "ldm-sr")
]


class Files(dict):
    """Family -> its file, made when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        self[name] = saved(name, self.folder / f"{name}.safetensors")
        return self[name]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("families"))


def load(path: Path, **options: object) -> ldm.Pipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return ldm.load(path, **options)


def given(pipe: ldm.Pipeline) -> dict:
    """What a family needs to be given."""
    rng = np.random.default_rng(0)
    family, side = pipe.family, REDUCED[pipe.family.name].size
    small = side // family.vae.factor if family.beside in ("upscale", "enlarge") else side
    out = {"prompt": ["a cat", "Émile's dog 😀"], "seed": 3, "output_type": "pt", "progress": False}
    out |= {"height": side, "width": side, "num_inference_steps": 3, "strength": 0.7}
    if family.beside not in ("", "depth"):
        out["image"] = rng.random((small, small, 3), dtype=np.float32)
    if family.beside in ("inpaint", "fill"):
        out["mask_image"] = rng.random((side, side)) > 0.5
    if family.beside == "depth":
        out["depth_map"] = rng.random((side + 3, side))
    if family.name.startswith("ldm-cin"):
        out["prompt"] = [7, 207]
    elif not family.texts:
        out |= {"prompt": None, "num_images_per_prompt": 2}
    return out


@pytest.mark.parametrize("name", each(REDUCED))
def test_a_family_is_found_out_and_comes_back_whole(files, tmp_path: Path, name: str):
    pipe = load(files[name])
    assert pipe.family.name == GUESSED.get(name, name)
    pipe = load(files[name], family=name)
    assert pipe.family.unet == REDUCED[name].unet and pipe.family.texts == REDUCED[name].texts
    ldm.save(pipe, tmp_path / "again.safetensors")
    assert same(read_all(tmp_path / "again.safetensors"), read_all(files[name]))
    assert load(tmp_path / "again.safetensors").family == pipe.family  # now its texts say it


@pytest.mark.parametrize("name", each(REDUCED))
def test_a_family_draws(files, name: str):
    pipe = load(files[name], family=name)
    first = pipe(**given(pipe))
    assert first.images.shape == (2, 3, REDUCED[name].size, REDUCED[name].size)
    again = load(files[name], family=name)(**given(pipe))
    assert torch.equal(first.images, again.images)
    if pipe.family.texts:
        other = given(pipe) | {"prompt": [8, 208] if name.startswith("ldm-cin") else ["a hat", "two"]}
        assert not torch.equal(first.images, pipe(**other).images)


@pytest.mark.parametrize("name", each(FOLDERS))
def test_from_a_file_to_a_folder_and_back(files, tmp_path: Path, name: str):
    pipe = load(files[name], family=name)
    ldm.save(pipe, tmp_path / "folder", layout="diffusers")
    middle = ldm.load(tmp_path / "folder")
    assert middle.family == pipe.family
    ldm.save(middle, tmp_path / "back.safetensors")
    assert same(read_all(tmp_path / "back.safetensors"), read_all(files[name]))
    ldm.save(middle, tmp_path / "again")
    for file in sorted((tmp_path / "folder").rglob("*.*")):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path / "folder")).read_bytes()


@pytest.mark.parametrize("name", each(name for name in REDUCED if name not in FOLDERS))
def test_a_family_without_a_folder_layout_says_so(files, tmp_path: Path, name: str):
    with pytest.raises(CheckpointError, match="no folder layout"):
        ldm.save(load(files[name]), tmp_path / "folder", layout="diffusers")
    assert not (tmp_path / "folder").exists()


def test_latents_go_through_every_first_stage(files):
    for name in FEW:
        pipe = load(files[name], family=name)
        size = REDUCED[name].size
        images = unit_noise(0, 1, 3, size, size).clamp(-1, 1)
        z = pipe.encode(images)
        side = size // pipe.family.vae.factor
        assert z.shape == (1, pipe.family.vae.latent_channels, side, side)
        assert pipe.decode(z).shape == images.shape


def test_the_list_of_families_is_the_contracts():
    names = """ldm-text2img ldm-celeba256 ldm-churches256 ldm-cin256 ldm-cin256-vq-f8 ldm-sr ldm-inpaint
               sd1 sd1-inpaint sd1-pix2pix sd2 sd2-v sd2-inpaint sd2-depth sd-turbo sd-x4-upscaler
               sdxl sdxl-inpaint sdxl-refiner sdxl-turbo"""
    assert set(names.split()) | {"shapes"} == set(ldm.families()) == set(FAMILIES)
