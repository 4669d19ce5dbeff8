"""Folders: whole, in shards and variants, or refused with the file named."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

import ldm
from ldm import CheckpointError
from ldm.checkpoint.files import write
from tests import tiny
from tests.tiny import header_of, hollow, read_all, same, without

UNET = "unet/diffusion_pytorch_model"


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model"


def refused(path, *words, **options):
    with pytest.raises(CheckpointError) as caught:
        ldm.load(path, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def shard(folder, count=3):
    """The UNet in shards, as diffusers names them."""
    whole = folder / f"{UNET}.safetensors"
    tensors = read_all(whole)
    names, where = sorted(tensors), {}
    for i in range(count):
        file = f"diffusion_pytorch_model-{i + 1:05}-of-{count:05}.safetensors"
        own = {name: tensors[name] for name in names[i::count]}
        write(folder / "unet" / file, own, {"format": "pt"})
        where |= dict.fromkeys(own, file)
    whole.unlink()
    index = folder / f"{UNET}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index, where


def half(folder, keep):
    """A half-precision variant beside, or in place of, the plain files."""
    for path in list(folder.rglob("*.safetensors")):
        tensors = {name: tensor.half() for name, tensor in read_all(path).items()}
        write(path.with_suffix(".fp16.safetensors"), tensors, {"format": "pt"})
        if not keep:
            path.unlink()


def test_shards_are_one_model(copy, pipe):
    shard(copy)
    assert same(ldm.load(copy).unet.state_dict(), pipe.unet.state_dict())


def test_the_only_variant_is_taken(copy, pipe):
    half(copy, keep=False)
    expected = {name: weight.half() for name, weight in pipe.unet.state_dict().items()}
    assert same(ldm.load(copy, dtype=torch.float16).unet.state_dict(), expected)


def test_of_two_variants_the_plain_one_is_taken_unless_asked(copy, pipe):
    half(copy, keep=True)
    assert same(ldm.load(copy).unet.state_dict(), pipe.unet.state_dict())
    expected = {name: weight.half() for name, weight in pipe.unet.state_dict().items()}
    found = ldm.load(copy, variant="fp16", dtype=torch.float16)
    assert same(found.unet.state_dict(), expected)


def test_two_variants_and_no_plain_file_need_a_word(copy):
    half(copy, keep=False)
    for path in list(copy.rglob("*.fp16.safetensors")):
        shutil.copy(path, str(path).replace(".fp16.", ".ema."))
    refused(copy, "'fp16'", "'ema'", "variant=")
    assert ldm.load(copy, variant="ema").family.name == "sd1"


def test_a_variant_that_is_not_there_is_refused(copy):
    refused(copy, "variant", variant="bf16")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(copy, part):
    shutil.rmtree(copy / part)
    refused(copy, part)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "text_encoder/model.safetensors",
        f"{UNET}.safetensors",
    ],
)
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe", b"3"])
def test_a_missing_or_damaged_file_is_named(copy, name, content):
    path = copy / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    word = (
        name.split("/")[-1]
        if content is not None or not name.endswith(".safetensors")
        else name.split("/")[0]
    )
    refused(copy, word)


def test_only_pickles_are_refused_and_not_opened(copy):
    (copy / f"{UNET}.safetensors").rename(copy / f"{UNET}.bin")
    refused(copy, "unet", ".bin pickles", "never executed")


def test_a_missing_shard_is_named(copy):
    _, where = shard(copy)
    name = sorted(set(where.values()))[1]
    (copy / "unet" / name).unlink()
    refused(copy, name, "missing")


def test_a_tensor_that_is_not_in_its_shard_is_named(copy):
    _, where = shard(copy)
    key, name = next(iter(where.items()))
    path = copy / "unet" / name
    write(path, without([key], read_all(path)), {"format": "pt"})
    refused(copy, key, name)


def test_a_tensor_in_two_shards_is_named(copy):
    _, where = shard(copy)
    (key, name), other = next(iter(where.items())), sorted(set(where.values()))[2]
    path = copy / "unet" / other
    write(path, read_all(path) | {key: read_all(copy / "unet" / name)[key]}, {"format": "pt"})
    refused(copy, key, name, other)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_named(copy, content):
    index, _ = shard(copy)
    index.write_text(content)
    refused(copy, index.name)


def test_an_index_cannot_point_outside_its_folder(copy, tmp_path):
    index, where = shard(copy)
    name = next(iter(where.values()))
    (copy / "unet" / name).rename(tmp_path / name)
    index.write_text(
        json.dumps({"weight_map": {k: f"../../{v}" if v == name else v for k, v in where.items()}})
    )
    refused(copy, name)


CONTRADICTIONS = {
    "unet": {
        "block_out_channels": [32, 96],
        "cross_attention_dim": 64,
        "layers_per_block": 2,
        "in_channels": 9,
        "norm_num_groups": 7,
        "attention_head_dim": 5,
        "use_linear_projection": True,
        "act_fn": "gelu",
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "num_attention_heads": [4, 5],
    },
    "vae": {
        "block_out_channels": [32, 32],
        "latent_channels": 8,
        "layers_per_block": 2,
        "norm_num_groups": 5,
        "act_fn": "relu",
        "shift_factor": 0.1,
        "mid_block_add_attention": False,
    },
    "text_encoder": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 95,
        "num_attention_heads": 5,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-6,
        "vocab_size": 999,
        "max_position_embeddings": 77,
    },
    "scheduler": {
        "prediction_type": "flow",
        "beta_schedule": "cosine",
        "num_train_timesteps": 0,
        "trained_betas": [0.1],
        "rescale_betas_zero_snr": "yes",
        "timestep_spacing": "odd",
    },
}


@pytest.mark.parametrize(
    ("part", "field"), [(part, field) for part, all_ in CONTRADICTIONS.items() for field in all_]
)
def test_a_config_that_contradicts_the_tensors_or_the_network_is_refused(copy, part, field):
    path = copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: CONTRADICTIONS[part][field]}))
    refused(copy)


def test_a_key_missing_from_a_folder_is_named_with_its_part(copy):
    path = copy / "vae/diffusion_pytorch_model.safetensors"
    write(path, without(["decoder.conv_in.bias"], read_all(path)), {"format": "pt"})
    refused(copy, "vae/decoder.conv_in.bias")


FILES = {
    "unet": f"{UNET}.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


FAULTS = ("missing", "larger", "longer")


def not_named(copy, part, faults):
    """The keys of a component that are not named when something is wrong with them, the faults in turn."""
    path = copy / FILES[part]
    header = header_of(path)
    for i, (key, (dtype, (first, *rest))) in enumerate(header.items()):
        fault = faults[i % len(faults)]
        line = {"larger": (dtype, [first + 1, *rest]), "longer": (dtype, [first, *rest, 1])}
        hollow(path, without([key], header) | ({} if fault == "missing" else {key: line[fault]}))
        try:
            problems = ldm.inspect(copy).problems
        except CheckpointError as error:
            problems = str(error)
        if key not in problems:
            yield key, fault, problems


@pytest.mark.slow
@pytest.mark.parametrize("part", FILES)
def test_each_key_of_a_folder_is_missed_when_something_is_wrong_with_it(copy, monkeypatch, part):
    tiny.swift(monkeypatch)
    assert list(not_named(copy, part, FAULTS)) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_key_of_a_folder_is_missed_whatever_is_wrong_with_it(copy, monkeypatch, part, fault):
    tiny.swift(monkeypatch)
    assert list(not_named(copy, part, [fault])) == []


def test_another_sampler_in_the_folder_changes_no_process(copy, folder):
    path = copy / "scheduler/scheduler_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"_class_name": "PNDMScheduler", "skip_prk_steps": True})
    )
    assert ldm.load(copy).family == ldm.load(folder).family


def test_a_schedule_that_ends_without_signal_is_heard_and_written(tmp_path):
    schedule = replace(tiny.TINY.schedule, zero_snr=True)
    pipe = tiny.make(replace(tiny.TINY, schedule=schedule, prediction=ldm.V, name="sd2-v"))
    ldm.save(pipe, tmp_path / "a", layout="diffusers")
    found = ldm.load(tmp_path / "a").family.schedule
    assert found == schedule and found.alphas[-1] == 0
    ldm.save(pipe, tmp_path / "a.safetensors")
    assert ldm.load(tmp_path / "a.safetensors").family.schedule == schedule
