"""Configs, notes, paths and values of the wrong kind are refused by name, and nothing is guessed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import ldm
from ldm import CheckpointError, DeviceError, InputError
from ldm.checkpoint import settings
from ldm.checkpoint.files import File, write
from tests import tiny
from tests.tiny import header_of, hollow, read_all


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def change(path, **fields):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | fields))


def refused(source, *words, look=True):
    for read in (ldm.load, ldm.inspect) if look else (ldm.load,):
        with pytest.raises(CheckpointError) as caught:
            read(source)
        assert all(word in str(caught.value) for word in words), str(caught.value)


NAN, INF = float("nan"), float("inf")
HEADS = ["8", -8, [[8]], 0, {}, [], True, 8.0, [8, True], [8, 4]]
FIELDS = {
    ("vae/config.json", "scaling_factor"): ["x", None, [1], 0, -1, NAN, INF, True, 10**400],
    ("unet/config.json", "attention_head_dim"): HEADS,
    ("unet/config.json", "num_attention_heads"): HEADS,
    ("unet/config.json", "sample_size"): [-1, 0, 10**9, "x", True],
    ("unet/config.json", "norm_num_groups"): [None, 0, "8"],
    ("scheduler/scheduler_config.json", "beta_start"): ["x", None, -1, 2.0, NAN, 0],
    ("scheduler/scheduler_config.json", "beta_end"): ["x", None, -1, 2.0, NAN, True],
    ("scheduler/scheduler_config.json", "num_train_timesteps"): [10**12, 0, None, "1000"],
    ("scheduler/scheduler_config.json", "set_alpha_to_one"): ["no", None, 0],
    ("model_index.json", "_ldm_family"): [[], {}, 3, None],
}


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_field_of_the_wrong_kind_is_named_with_its_file(copy, name, field):
    before = (copy / name).read_text()
    for value in FIELDS[name, field]:
        change(copy / name, **{field: value})
        refused(copy, name, field)
        (copy / name).write_text(before)


def test_equal_heads_by_level_and_no_sample_size_are_fine(copy, pipe):
    change(copy / "unet/config.json", attention_head_dim=[8, 8], sample_size=None)
    found = ldm.load(copy).family
    assert found.unet == pipe.family.unet and found.size == 512


@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json", "tokenizer/special_tokens_map.json"])
@pytest.mark.parametrize("text", ['{"a": ' + "[" * 3000 + "]" * 3000 + "}", '{"a": ' + "1" * 5000 + "}"])
def test_json_that_cannot_be_parsed_is_named(copy, name, text):
    (copy / name).write_text(text if "1" in text else text * 40)
    refused(copy, name, look=False)


NOTES = {
    "steps": [0, "4", 10**12, None],
    "guidance": ["7", NAN, True],
    "size": [0, 10**9, 16.0],
    "sampler": ["magic", []],
    "beside": ["sound", None, 3],
    "vector": ["smell", []],
    "blank": ["no", 1],
    "texts": [None, 3, [3], ["a"], [{}]],
    "texts.0.pad": [None, 3],
    "texts.0.kind": ["t5", None],
    "set_alpha_to_one": ["no", 1],
    "name": ["sd9", [], None],
    "prediction": ["flow", []],
    "spacing": [None, "odd"],
    "unet.heads": [0, "8", -8, True, 8.5],
    "unet.groups": [0, 10**9, [32]],
    "unet.channels": [[], 32, [32], [32, "64"], [32, 10**12], [32] * 1000],
    "unet.depth": [[1], [1, 1, 1], [10**6, 1], [1, None]],
    "unet.mid_depth": [10**6, -1],
    "unet.res_blocks": [10**6, 0],
    "unet.new": [1],
    "vae.scale": ["x", 0, NAN, None],
    "vae.channels": [[32] * 40, []],
    "texts.0.config.activation": ["relu", []],
    "texts.0.config.vocab": [10**12, "x"],
    "texts.0.config.layers": [10**6, 0],
    "texts.0.config.skip": [3],
    "schedule.beta_start": ["x", 0, 2, NAN],
    "schedule.steps": [10**12, 0],
    "schedule.law": ["cosine", [], None],
    "schedule": [None, []],
    "vae": [None, 3],
}


@pytest.mark.parametrize("field", NOTES)
def test_notes_of_the_wrong_kind_are_refused_before_anything_is_built(field):
    part, _, name = field.rpartition(".")
    for value in NOTES[field]:
        said = json.loads(settings.to_json(tiny.TINY))
        place = said
        for step in part.split(".") if part else []:
            place = place[int(step) if step.isdecimal() else step]
        place[name] = value
        with pytest.raises(CheckpointError, match=r"x\.safetensors: the metadata ldm\.family") as caught:
            settings.from_json(json.dumps(said), "x.safetensors")
        assert "pass family=" in str(caught.value)
    assert settings.from_json(settings.to_json(tiny.TINY), "x") == tiny.TINY


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_notes_that_are_no_notes_are_refused(file, tmp_path, text):
    path = hollow(tmp_path / "a.safetensors", header_of(file), {settings.KEY: text})
    refused(path, settings.KEY)


# A network that is not there


PREFIXES = {
    "the autoencoder (first_stage_model.*)": "first_stage_model.",
    "the UNet (model.diffusion_model.*)": "model.diffusion_model.",
}


@pytest.mark.parametrize("name", PREFIXES)
def test_a_whole_network_that_is_missing_is_named(bare_file, tmp_path, name):
    header = {k: line for k, line in header_of(bare_file).items() if not k.startswith(PREFIXES[name])}
    path = hollow(tmp_path / "a.safetensors", header)
    report = ldm.inspect(path)
    assert report.missing and all(key.startswith(PREFIXES[name]) for key in report.missing)
    refused(path, f"there is no tensor of {name}", "get the whole file again", look=False)


def test_a_first_layer_that_is_missing_from_a_folder_is_named(copy):
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    write(path, tiny.without(["conv_in.weight"], read_all(path)), {})
    assert ldm.inspect(copy).missing == ["unet/conv_in.weight"]
    refused(copy, "unet/conv_in.weight", look=False)


# Tokenizers


def test_added_tokens_are_refused_unless_the_vocabulary_has_them(copy, pipe):
    path = copy / "tokenizer/added_tokens.json"
    change(path, **{"<|endoftext|>": pipe.tokenizers[0].vocab["<|endoftext|>"]})
    ldm.load(copy)
    change(path, **{"<cat>": 714})
    refused(copy, "added_tokens.json", "<cat>", "not supported", look=False)


def test_the_pad_token_is_that_of_either_file(copy):
    special, config = copy / "tokenizer/special_tokens_map.json", copy / "tokenizer/tokenizer_config.json"
    change(config, pad_token="!")
    assert ldm.load(copy).tokenizers[0].pad == "<|endoftext|>"  # as in the official folders of SD 2
    special.unlink()
    assert ldm.load(copy).tokenizers[0].pad == "!"
    change(config, pad_token={"content": "a"})
    assert ldm.load(copy).tokenizers[0].pad == "a"
    change(special, pad_token=None)
    refused(copy, "special_tokens_map.json: pad_token", look=False)


# Values beyond a dtype


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_weights_beyond_a_dtype_are_named_and_not_made_infinite(tmp_path, layout):
    pipe = tiny.make()
    with torch.no_grad():
        pipe.vae.to_moments.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"quant_conv\.bias has 1 values beyond"):
        ldm.save(pipe, tmp_path / "half", layout=layout, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
    ldm.save(pipe, tmp_path / "a", layout=layout)
    with pytest.raises(CheckpointError, match=r"quant_conv\.bias has 1 values beyond"):
        ldm.load(tmp_path / "a", dtype=torch.float16)
    assert float(ldm.load(tmp_path / "a", dtype=torch.bfloat16).vae.to_moments.bias[0]) > 9e5


# Paths and devices


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 5000, "a\0b", "nowhere"])
def test_a_path_that_cannot_be_is_refused_alike_by_all(path, pipe):
    refused(path)
    if path != "nowhere":
        with pytest.raises(CheckpointError):
            ldm.save(pipe, path)


def test_a_home_is_found_by_both(bare_file, monkeypatch):
    monkeypatch.setenv("HOME", str(bare_file.parent))
    assert ldm.inspect("~/bare.safetensors").family == ldm.load("~/bare.safetensors").family.name == "sd1"


def test_a_device_without_its_module_is_a_device_error(file):
    with pytest.raises(DeviceError, match="privateuseone"):
        ldm.load(file, device="privateuseone")


def test_swapped_arguments_are_told(pipe, tmp_path):
    with pytest.raises(InputError, match=r"save\(pipe, path\)"):
        ldm.save(tmp_path / "a", pipe)


# The order of evidence


@pytest.mark.parametrize("channels", [8, 9])
@pytest.mark.parametrize("base", [tiny.TINY, tiny.BARE], ids=["notes", "tensors"])
def test_wide_latents_are_no_other_family(tmp_path, channels, base):
    unet = replace(base.unet, in_channels=channels, out_channels=channels)
    family = replace(base, unet=unet, vae=replace(base.vae, latent_channels=channels))
    pipe = tiny.make(family)
    for name, layout in (("a.safetensors", "original"), ("a", "diffusers")):
        ldm.save(pipe, tmp_path / name, layout=layout)
        found = ldm.load(tmp_path / name)
        assert found.family.unet == unet
        for one, other in zip(found.networks(), pipe.networks(), strict=True):
            assert tiny.same(one.state_dict(), other.state_dict())


def test_the_model_in_the_package_is_loaded_again_from_a_file(tmp_path):
    pipe = ldm.load()
    ldm.save(pipe, tmp_path / "a.safetensors")
    found = ldm.load(tmp_path / "a.safetensors")
    assert found.family == pipe.family
    for one, other in zip(found.networks(), pipe.networks(), strict=True):
        assert tiny.same(one.state_dict(), other.state_dict())


def test_an_argument_wins_over_a_family_that_is_not_known(bare_file, file, tmp_path):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    wide = header_of(bare_file) | {key: ("F32", [32, 9, 3, 3])}
    path = hollow(tmp_path / "a.safetensors", wide)
    with pytest.raises(CheckpointError, match=f"cannot be loaded as sd1: mismatched: {key}"):
        ldm.load(path, family="sd1")
    notes = File.open(file).metadata
    path = hollow(tmp_path / "b.safetensors", header_of(file) | {key: ("F32", [32, 9, 3, 3])}, notes)
    assert ldm.inspect(path).family == "sd1" and ldm.inspect(path).mismatched
