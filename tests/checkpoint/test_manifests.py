"""Every official single file, at full size on the meta device, against its exact manifest."""

import json
import lzma
from functools import cache
from pathlib import Path

import pytest
import torch

import ldm
from ldm.checkpoint import original, sizes, tables
from ldm.checkpoint.plan import make_plan
from ldm.checkpoint.table import assemble, table
from ldm.families import FAMILIES
from ldm.vae import VAE, VAEConfig
from tests.tiny import DATA, hollow

FAMILY = {
    "ldm-bsr-sr": "ldm-sr",
    "ldm-celeba256": "ldm-celeba256",
    "ldm-cin256": "ldm-cin256",
    "ldm-cin256-vq-f8": "ldm-cin256-vq-f8",
    "ldm-inpainting-big": "ldm-inpaint",
    "ldm-lsun-churches256": "ldm-churches256",
    "ldm-text2img-large": "ldm-text2img",
    "ldm-text2img256": "ldm-text2img",
    "sd-turbo": "sd-turbo",
    "sd-v1": "sd1",
    "sd-v1-inpainting": "sd1-inpaint",
    "sd-v2": "sd2-v",
    "sd-v2-depth": "sd2-depth",
    "sd-v2-inpainting": "sd2-inpaint",
    "sd-x4-upscaler": "sd-x4-upscaler",
    "sdxl-base": "sdxl",
    "sdxl-refiner": "sdxl-refiner",
}
UNETS = {  # parameters
    "ldm-text2img-large": 872_300_484,
    "sd-v1": 859_520_964,
    "sd-v2": 865_910_724,
    "sd-x4-upscaler": 473_398_020,
    "sdxl-base": 2_567_463_684,
    "sdxl-refiner": 2_259_526_660,
}


@cache
def manifests() -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Manifest -> tensor -> dtype and shape."""
    raw = json.loads(lzma.decompress((DATA / "single_files.json.xz").read_bytes()))
    return {
        name: {k: (dtype, tuple(shape)) for k, (dtype, shape) in keys.items()} for name, keys in raw.items()
    }


@cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, (_, shape) in manifests()[name].items()}


def test_no_manifest_is_left_out():
    assert FAMILY.keys() | {"vae-kl-f8"} == manifests().keys()


@pytest.mark.parametrize("name", FAMILY)
def test_every_tensor_has_its_place(name: str, tmp_path: Path):
    file = hollow(tmp_path / "model.safetensors", manifests()[name])
    report = ldm.inspect(file)
    assert report.family == FAMILY[name], report.reasons
    assert not report.problems
    plan = make_plan(file)
    used = [
        source.key for part in plan.parts for source in part.table.values() if source.form.part in (None, 0)
    ]
    assert len(used) == len(set(used))  # every key once, fused ones with all their thirds
    assert set(used) | set(report.ignored) == manifests()[name].keys()
    assert not set(used) & set(report.ignored)
    if name in UNETS:
        assert report.parts["unet"] == UNETS[name]


@pytest.mark.parametrize("name", FAMILY)
def test_what_is_saved_has_the_same_names_and_shapes(name: str, tmp_path: Path):
    plan = make_plan(hollow(tmp_path / "model.safetensors", manifests()[name]))
    saved = {}
    for part in plan.parts:
        saved |= assemble(part.model.state_dict(), part.table)
    saved = {key: tuple(tensor.shape) for key, tensor in saved.items()}
    assert saved == {key: shape for key, shape in shapes(name).items() if key not in plan.report.ignored}


@pytest.mark.parametrize("name", FAMILY)
def test_the_preset_is_what_the_official_file_has(name: str):
    preset = FAMILIES[FAMILY[name]]
    found = sizes.family(shapes(name), preset, original.text_prefixes(shapes(name), preset))
    if name == "ldm-text2img256":  # a smaller model with the same name
        assert found.unet.context_dim == found.texts[0].config.width == 640
        return
    assert found == preset


@pytest.mark.parametrize("name", ["sd-v1", "sd-v2", "sdxl-base", "ldm-cin256", "ldm-text2img-large"])
def test_tables_of_a_family_are_those_of_the_official_file(name: str):
    extras = tables.extras(FAMILIES[FAMILY[name]])
    official = {key: value for key, value in manifests()[name].items() if key in extras}
    assert official.keys() == extras.keys()
    assert all(tuple(tensor.shape) == official[key][1] for key, tensor in extras.items())


def test_a_missing_tensor_is_missed(tmp_path: Path):
    tensors = dict(manifests()["sdxl-refiner"])
    gone = "conditioner.embedders.0.model.text_projection"
    del tensors[gone]
    assert ldm.inspect(hollow(tmp_path / "model.safetensors", tensors)).missing == [gone]


def test_every_tensor_of_a_first_stage_alone():
    found = {k: s for k, s in shapes("vae-kl-f8").items() if not k.startswith("model_ema.")}
    config = sizes.vae_config(found, VAEConfig())
    with torch.device("meta"):
        state = VAE(config).state_dict()
    sources = table(state, original.vae_rules(config, ""))
    assert {s.key: s.form.shape(tuple(state[k].shape)) for k, s in sources.items()} == found
