"""Networks alone: from files and folders of their own, and out of whole models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm import CheckpointError
from tests.reduced import make
from tests.tiny import read_all, same

PREFIXES = {
    "vae": ("first_stage_model.", "vae", ldm.load_vae),
    "unet": ("model.diffusion_model.", "unet", ldm.load_unet),
    "text_encoder": ("cond_stage_model.transformer.text_model.", "text_encoder", ldm.load_text_encoder),
}


@pytest.fixture(scope="module")
def pipe() -> ldm.Pipeline:
    return make("sd1")


@pytest.fixture(scope="module")
def places(pipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("components")
    ldm.save(pipe, place / "model.safetensors")
    ldm.save(pipe, place / "folder", layout="diffusers")
    return place / "model.safetensors", place / "folder"


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_network_from_everywhere(pipe, places, tmp_path: Path, kind: str):
    single, folder = places
    prefix, name, load = PREFIXES[kind]
    tensors = read_all(single)
    own = {key: value for key, value in tensors.items() if key.startswith(prefix)}
    save_file(own, tmp_path / "prefixed.safetensors")
    save_file({key.removeprefix(prefix): value for key, value in own.items()}, tmp_path / "bare.safetensors")
    expected = {"vae": pipe.vae, "unet": pipe.unet, "text_encoder": pipe.text_encoders[0]}[kind].state_dict()
    weights = next((folder / name).glob("*.safetensors"))
    sources = (
        single,
        folder,
        tmp_path / "prefixed.safetensors",
        tmp_path / "bare.safetensors",
        folder / name,
        weights,
    )
    for source in sources:
        assert same(load(source, family="sd1").state_dict(), expected), source
    half = load(single, dtype=torch.float16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.float16}


@pytest.mark.parametrize("kind", PREFIXES)
def test_what_holds_no_such_network_says_so(places, tmp_path: Path, kind: str):
    prefix, _, load = PREFIXES[kind]
    tensors = read_all(places[0])
    save_file({"a.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no"):
        load(tmp_path / "other.safetensors")
    own = {key: value for key, value in tensors.items() if key.startswith(prefix)}
    gone = sorted(own)[len(own) // 2]
    save_file({key: value for key, value in own.items() if key != gone}, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match=gone.removeprefix(prefix)):
        load(tmp_path / "less.safetensors", family="sd1")


def test_a_vae_file_with_the_counters_of_its_averages(pipe, places, tmp_path: Path):
    own = {k[18:]: v for k, v in read_all(places[0]).items() if k.startswith("first_stage_model.")}
    own |= {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3, dtype=torch.int32)}
    save_file(own, tmp_path / "vae.safetensors")
    vae = ldm.load_vae(tmp_path / "vae.safetensors", family="sdxl")
    assert same(vae.state_dict(), pipe.vae.state_dict()) and vae.config.scale == 0.13025


def test_a_unet_of_unusual_sizes_wants_a_family(places, tmp_path: Path):
    own = {k: v for k, v in read_all(places[0]).items() if k.startswith("model.diffusion_model.")}
    save_file(own, tmp_path / "unet.safetensors")
    with pytest.raises(CheckpointError, match="pass family="):
        ldm.load_unet(tmp_path / "unet.safetensors")


def test_the_networks_of_a_model_without_prompts(tmp_path: Path):
    pipe = make("ldm-celeba256")
    ldm.save(pipe, tmp_path / "a.safetensors")
    ldm.save(pipe, tmp_path / "folder", layout="diffusers")
    tensors = read_all(tmp_path / "a.safetensors")
    for prefix, name, load in (*PREFIXES.values(),)[:2]:
        own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        save_file(own, tmp_path / "alone.safetensors")
        place = tmp_path / "folder" / name.replace("vae", "vqvae")
        network = {"vae": pipe.vae, "unet": pipe.unet}[name]
        for source in (tmp_path / "alone.safetensors", place, next(place.glob("*.safetensors"))):
            found = load(source, family="ldm-celeba256")
            assert same(found.state_dict(), network.state_dict()) and found.config == network.config
    assert ldm.load_vae(place.with_name("vqvae")).config.scale == 1.0
    with pytest.raises(CheckpointError, match="hears no tokens is of no known family"):
        ldm.load_unet(tmp_path / "alone.safetensors")
