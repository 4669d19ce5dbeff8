"""The networks of every official single file, at full size on the meta device, against its exact manifest."""

import json
import lzma
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from ldm.checkpoint import original, sizes
from ldm.checkpoint.evidence import under
from ldm.checkpoint.table import Rule, table
from ldm.clip import CLIPConfig, TextEncoder
from ldm.clip.bert import BERT, BERTConfig
from ldm.unet import UNet, UNetConfig
from ldm.vae import VAE, VAEConfig
from tests.tiny import DATA

UNET, VAE_PREFIX, TEXT = original.UNET, original.VAE, "cond_stage_model."


@cache
def manifests() -> dict[str, dict[str, tuple[int, ...]]]:
    """Manifest -> tensor -> shape."""
    raw = json.loads(lzma.decompress((DATA / "single_files.json.xz").read_bytes()))
    return {name: {key: tuple(shape) for key, (_, shape) in keys.items()} for name, keys in raw.items()}


def preset(name: str) -> UNetConfig:
    """What shapes cannot tell of a UNet."""
    shapes = under(manifests()[name], UNET)
    sizes = {"in_channels": shapes["input_blocks.0.0.weight"][1], "out_channels": shapes["out.2.weight"][0]}
    by_width = {"ldm-celeba256": 32, "ldm-bsr-sr": 32, "ldm-cin256-vq-f8": 32} | dict.fromkeys(
        ("sd-v2", "sd-v2-inpainting", "sd-v2-depth", "sd-turbo", "sdxl-base", "sdxl-refiner"), 64
    )
    config = replace(UNetConfig(), **sizes)
    if name in by_width:
        config = replace(config, heads=None, head_dim=by_width[name])
    if name == "sd-x4-upscaler":
        config = replace(config, crossing=(True, True, True, False))
    return config


def matches(model: nn.Module, rules: list[Rule], shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """The keys of a file that a network uses, each with the right shape; all of ours are there."""
    used, state = set(), model.state_dict()
    for ours, (key, form) in table(state, rules).items():
        assert key in shapes, f"{ours} is sought as {key}"
        assert form.shape(tuple(state[ours].shape)) == shapes[key], key
        used.add(key)
    return used


UNETS = {  # parameters
    "ldm-text2img-large": 872_300_484,
    "sd-v1": 859_520_964,
    "sd-v2": 865_910_724,
    "sd-x4-upscaler": 473_398_020,
    "sdxl-base": 2_567_463_684,
    "sdxl-refiner": 2_259_526_660,
}


@pytest.mark.parametrize("name", [name for name in sorted(manifests()) if name != "vae-kl-f8"])
def test_every_tensor_of_a_unet(name: str):
    shapes = under(manifests()[name], UNET)
    config = sizes.unet_config(shapes, preset(name))
    with torch.device("meta"):
        model = UNet(config)
    linear = any(re.search(r"\.1\.proj_in\.weight", key) and len(shape) == 2 for key, shape in shapes.items())
    used = matches(model, original.unet_rules(config, linear), {UNET + key: s for key, s in shapes.items()})
    assert used == {UNET + key for key in shapes}
    if name in UNETS:
        assert sum(p.numel() for p in model.parameters()) == UNETS[name]


@pytest.mark.parametrize("name", sorted(manifests()))
def test_every_tensor_of_a_first_stage(name: str):
    prefix = "" if name == "vae-kl-f8" else VAE_PREFIX
    shapes = under(manifests()[name], prefix)
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith("model_ema.")}
    config = sizes.vae_config(shapes, VAEConfig())
    with torch.device("meta"):
        model = VAE(config)
    used = matches(model, original.vae_rules(config, prefix), {prefix + key: s for key, s in shapes.items()})
    assert used == {prefix + key for key in shapes}


@pytest.mark.parametrize(
    ("name", "prefix", "unused"),
    [
        ("sd-v2", "cond_stage_model.model.", {"logit_scale", "text_projection"}),
        ("sd-x4-upscaler", "cond_stage_model.model.", {"logit_scale", "text_projection"}),
        ("sd-turbo", "conditioner.embedders.0.model.", {"logit_scale", "text_projection"}),
        ("sdxl-base", "conditioner.embedders.1.model.", {"logit_scale"}),
        ("sdxl-refiner", "conditioner.embedders.0.model.", {"logit_scale"}),
    ],
)
def test_every_tensor_of_an_openclip(name: str, prefix: str, unused: set[str]):
    shapes = under(manifests()[name], prefix)
    pooled = "text_projection" not in unused
    base = CLIPConfig(activation="gelu", skip=1, final_norm=not pooled, projection=1280 if pooled else None)
    config = sizes.text_config(shapes, base)
    with torch.device("meta"):
        model = TextEncoder(config)
    used = matches(model, original.openclip_rules(prefix), {prefix + key: s for key, s in shapes.items()})
    assert {prefix + key for key in shapes} - used == {prefix + key for key in unused}


def test_every_tensor_of_sdxls_clip():
    prefix = "conditioner.embedders.0.transformer.text_model."
    shapes = under(manifests()["sdxl-base"], prefix)
    config = sizes.text_config(shapes, CLIPConfig(skip=1, final_norm=False))
    with torch.device("meta"):
        model = TextEncoder(config)
    used = matches(model, original.text_rules(prefix), {prefix + key: s for key, s in shapes.items()})
    assert {prefix + key for key in shapes} - used == {prefix + "embeddings.position_ids"}


@pytest.mark.parametrize("name", ["ldm-text2img-large", "ldm-text2img256"])
def test_every_tensor_of_ldms_bert(name: str):
    prefix = "cond_stage_model.transformer."
    shapes = under(manifests()[name], prefix)
    config = sizes.bert_config(shapes, BERTConfig())
    with torch.device("meta"):
        model = BERT(config)
    used = matches(model, original.bert_rules(prefix), {prefix + key: s for key, s in shapes.items()})
    assert {key for key in {prefix + key for key in shapes} - used if "to_logits" not in key} == set()
    assert (config.width, config.heads * config.head_dim) in ((1280, 512), (640, 512))
