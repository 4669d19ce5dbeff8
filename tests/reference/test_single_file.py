"""What diffusers' from_single_file reads in the files that we write is what we write in folders.

The sizes come from our folder's configs, the tensors from our file. What it cannot read:

sd2-depth  its pipeline has no from_single_file; the plain one takes the same three networks
sd-turbo   its text encoder is known by text_projection, which official files have and folders have not
ldm-*      there is nothing for BERT, for classes and for codes; of ldm-text2img it reads UNet and autoencoder
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

import ldm
from tests.reduced import REDUCED, make
from tests.reference.test_family_pipelines import peer_of
from tests.tiny import read_all, same

SHOWN = ("sd2-v", "sdxl")  # by default, all in the slow run
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
MARKER = "conditioner.embedders.0.model.text_projection"  # of SD-Turbo, whose networks do not use it


class Written(NamedTuple):
    file: Path
    folder: Path
    peer: DiffusionPipeline  # of the folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """Family -> its file and its folder."""
    kept: dict[str, Written] = {}

    def get(name: str) -> Written:
        if name not in kept:
            place = tmp_path_factory.mktemp(name)
            pipe = with_marker(make(name), place) if name == "sd-turbo" else make(name)
            ldm.save(pipe, place / "model.safetensors")
            ldm.save(pipe, place / "folder", layout="diffusers")
            kept[name] = Written(place / "model.safetensors", place / "folder", peer_of(place / "folder"))
        return kept[name]

    return get


def with_marker(pipe: ldm.Pipeline, place: Path) -> ldm.Pipeline:
    """The pipeline as it is loaded from a file that has the tensor they look for."""
    ldm.save(pipe, place / "without.safetensors")
    width = REDUCED["sd-turbo"].texts[0].config.width
    save_file(
        read_all(place / "without.safetensors") | {MARKER: torch.eye(width)}, place / "with.safetensors"
    )
    return ldm.load(place / "with.safetensors", family="sd-turbo")


def from_file(file: Path, folder: Path) -> DiffusionPipeline:
    kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    kind = kind if hasattr(kind, "from_single_file") else StableDiffusionPipeline
    return kind.from_single_file(str(file), config=str(folder), local_files_only=True)


def differing(a: DiffusionPipeline, b: DiffusionPipeline) -> list[str]:
    """The tensors that only one of two pipelines has, or not with the same bits."""
    x, y = ({name: getattr(pipe, name, None) for name in NETWORKS} for pipe in (a, b))
    return sorted(key for name in NETWORKS for key in unlike(name, x[name], y[name]))


def unlike(name: str, a: nn.Module | None, b: nn.Module | None) -> list[str]:
    x, y = ({} if network is None else network.state_dict() for network in (a, b))
    return [f"{name}/{key}" for key in x.keys() | y.keys() if not same(one(x, key), one(y, key))]


def one(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {key: state[key]} if key in state else {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SHOWN else pytest.mark.slow)
        for name in REDUCED
        if name.startswith("sd")
    ],
)
def test_a_file_holds_the_tensors_of_the_folder(written, name: str):
    file, folder, peer = written(name)
    assert differing(from_file(file, folder), peer) == []


def test_other_tensors_are_told(written, tmp_path: Path):
    """Each would go unnoticed where only shapes are looked at."""
    file, folder, peer = written("sdxl")
    tensors = read_all(file)
    turned, swapped = "conditioner.embedders.1.model.text_projection", "first_stage_model.decoder.mid.attn_1"
    tensors[turned] = tensors[turned].T.contiguous()
    q, k = f"{swapped}.q.weight", f"{swapped}.k.weight"
    tensors[q], tensors[k] = tensors[k], tensors[q]
    fused = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias"
    tensors[fused] = tensors[fused].roll(len(tensors[fused]) // 3)
    save_file(tensors, tmp_path / "wrong.safetensors")
    attention = "text_encoder_2/text_model.encoder.layers.0.self_attn"
    assert differing(from_file(tmp_path / "wrong.safetensors", folder), peer) == [
        *(f"{attention}.{letter}_proj.bias" for letter in "kqv"),
        "text_encoder_2/text_projection.weight",
        "vae/decoder.mid_block.attentions.0.to_k.weight",
        "vae/decoder.mid_block.attentions.0.to_q.weight",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("unet", UNet2DConditionModel), ("vqvae", AutoencoderKL)])
def test_networks_of_the_first_model_alone(written, name: str, kind: type):
    file, folder, peer = written("ldm-text2img")
    found = kind.from_single_file(str(file), config=str(folder), subfolder=name, local_files_only=True)
    assert unlike(name, found, getattr(peer, name)) == []
