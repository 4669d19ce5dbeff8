"""A file that is something else is told what it is."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ldm
from ldm import CheckpointError, InputError, Schedule
from tests.reduced import saved
from tests.tiny import header_of, hollow, read_all, without

OTHERS = {
    "lora": (
        {
            "lora_unet_down_blocks_0.lora_down.weight": ("F16", [4, 320]),
            "lora_unet_down_blocks_0.lora_up.weight": ("F16", [320, 4]),
        },
        "LoRA",
    ),
    "peft lora": ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": ("F16", [4, 320])}, "LoRA"),
    "early lora": ({"unet.mid_block.attn1.processor.to_q_lora.down.weight": ("F16", [4, 320])}, "LoRA"),
    "lycoris": ({"lora_unet_mid_block_attn1_to_q.hada_w1_a": ("F16", [4, 320])}, "LyCORIS"),
    "diffusers controlnet": ({"controlnet_down_blocks.0.weight": ("F16", [320, 320, 1, 1])}, "ControlNet"),
    "ip adapter": ({"image_proj.proj.weight": ("F16", [3072, 1024])}, "IP-Adapter"),
    "sdxl embedding": ({"clip_l": ("F32", [2, 768]), "clip_g": ("F32", [2, 1280])}, "textual-inversion"),
    "quantised": (
        {
            "model.diffusion_model.out.2.weight": ("U8", [5760, 1]),
            "model.diffusion_model.out.2.weight.absmax": ("F32", [180]),
        },
        "quantised",
    ),
    "controlnet": ({"control_model.input_blocks.0.0.weight": ("F16", [320, 4, 3, 3])}, "ControlNet"),
    "embedding": ({"emb_params": ("F32", [2, 768])}, "textual-inversion"),
    "vae": (
        {"encoder.conv_in.weight": ("F32", [128, 3, 3, 3]), "quant_conv.bias": ("F32", [8])},
        "autoencoder",
    ),
    "unet": ({"down_blocks.0.resnets.0.conv1.weight": ("F32", [320, 320, 3, 3])}, "UNet alone"),
    "text encoder": ({"text_model.final_layer_norm.bias": ("F32", [768])}, "text encoder alone"),
    "language model": ({"model.layers.0.self_attn.q_proj.weight": ("BF16", [64, 64])}, "no tensor"),
    "nothing": ({}, "no tensor"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_file_is_named(tmp_path, kind):
    tensors, word = OTHERS[kind]
    path = hollow(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match=word):
        ldm.load(path)
    report = ldm.inspect(path)
    assert word in f"{report.family} {report.reasons}" and report.prediction is None
    assert report.parameters == sum(np.prod(shape, dtype=int) for _, shape in tensors.values())


def test_weights_of_eight_bits_are_refused_by_name(bare_file, tmp_path):
    header = header_of(bare_file)
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    path = hollow(tmp_path / "a.safetensors", header | {key: ("F8_E4M3", header[key][1])})
    assert "float8_e4m3fn, as quantised weights" in ldm.inspect(path).mismatched[0]
    with pytest.raises(CheckpointError, match=rf"{key} is of torch\.float8"):
        ldm.load(path)


def test_averages_are_counted_and_what_decides_the_prediction_is_said(bare_file, tmp_path):
    header = without(["betas"], header_of(bare_file))
    assert ldm.inspect(bare_file).ema == 0 and "averages" not in str(ldm.inspect(bare_file))
    means = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value
        for key, value in header.items()
        if key.startswith("model.diffusion_model.")
    }
    path = hollow(tmp_path / "a.safetensors", header | means | {"model_ema.decay": ("F32", [])})
    report = ldm.inspect(path)
    assert report.ema == len(means) and f"{len(means)} tensors of model_ema" in str(report)
    assert "eps (as every sd1 does)" in str(report)


@pytest.mark.parametrize(("inputs", "family"), [(9, "sd1-inpaint"), (8, "sd1-pix2pix")])
def test_a_unet_with_more_inputs_is_another_family(bare_file, tmp_path, inputs, family):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    header = without(["betas"], header_of(bare_file))
    path = hollow(tmp_path / "a.safetensors", header | {key: ("F32", [32, inputs, 3, 3])})
    assert ldm.inspect(path).family == ldm.load(path).family.name == family
    assert f"{inputs} input channels" in str(ldm.inspect(path))


def test_betas_decide_on_the_schedule(bare_file, tmp_path):
    tensors = read_all(bare_file)
    other = Schedule(0.0015, 0.0195)
    save_file(tensors | {"betas": torch.from_numpy(other.betas).float()}, tmp_path / "a.safetensors")
    found = ldm.load(tmp_path / "a.safetensors").family.schedule
    assert np.allclose(found.alphas, other.alphas, rtol=1e-6)
    for betas in (torch.zeros(1000), torch.rand(1000) * 0.01 + 0.001, torch.full((1000,), torch.nan)):
        save_file(tensors | {"betas": betas}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match="betas"):
            ldm.load(tmp_path / "a.safetensors")


MAKES = {  # a family that detection arrives at, and the metadata that make it another
    "sd2-v": ({"modelspec.architecture": "stable-diffusion-v2-512"}, "sd2"),
    "sdxl": ({"modelspec.title": "SDXL Turbo"}, "sdxl-turbo"),
}


@pytest.mark.parametrize("name", MAKES)
def test_what_tensors_cannot_tell_is_told_by_metadata_or_guessed_aloud(tmp_path, name):
    tensors = header_of(saved(name, tmp_path / "a.safetensors"))
    bare = hollow(tmp_path / "bare.safetensors", without(["betas"], tensors))
    assert ldm.inspect(bare).family == name
    assert ldm.inspect(bare).decided == ("a guess" if name == "sd2-v" else "as every sdxl does")
    with pytest.warns(UserWarning, match="pass family="):
        assert ldm.load(bare).family.name == name
    texts, other = MAKES[name]
    told = hollow(tmp_path / "told.safetensors", without(["betas"], tensors), texts)
    assert ldm.load(told).family.name == other
    assert ldm.load(bare, family=other).family.name == other


def test_an_asked_family_must_be_one_of_the_list(file):
    with pytest.raises(InputError, match=r"sd11.*did you mean 'sd1'"):
        ldm.load(file, family="sd11")
    assert "sd1" in ldm.families()


def test_an_asked_family_wins_and_is_held_to_the_tensors(bare_file):
    assert ldm.load(bare_file, family="sd1").family.name == "sd1"
    assert "family='sd1'" in str(ldm.checkpoint.plan.make_plan(bare_file, "sd1").report)


def test_a_file_with_an_adapter_inside_is_not_taken_for_a_model(bare_file, tmp_path):
    header = header_of(bare_file) | {"lora_te_x.lora_down.weight": ("F16", [4, 4])}
    with pytest.raises(CheckpointError, match="LoRA"):
        ldm.load(hollow(tmp_path / "a.safetensors", header))


def test_a_variant_is_for_folders(file):
    with pytest.raises(InputError, match="variant"):
        ldm.load(file, variant="fp16")


def test_the_numbers_of_a_file_are_one_scale_and_one_schedule(tmp_path):
    tensors = read_all(saved("ldm-churches256", tmp_path / "a.safetensors"))
    path = tmp_path / "b.safetensors"
    faults = {
        "scale_factor": (torch.empty(0), torch.ones(3), torch.tensor(1), torch.tensor(-1.0)),
        "betas": (torch.full((10, 100), 0.01), tensors["betas"][:10], torch.ones(1000, dtype=torch.int64)),
    }
    for name, values in faults.items():
        for value in values:
            save_file(tensors | {name: value}, path)
            with pytest.raises(CheckpointError, match=name):
                ldm.load(path)
    save_file({key: value for key, value in tensors.items() if key != "scale_factor"}, path)
    with pytest.warns(UserWarning, match="scale_factor is missing"):
        assert ldm.load(path).family.vae.scale == 1.0
