"""A file that is something else is told what it is."""

import pytest

import ldm
from ldm import CheckpointError, InputError
from tests.tiny import header_of, hollow

UNET = {"model.diffusion_model.input_blocks.0.0.weight": ("F16", [320, 4, 3, 3])}
OTHERS = {
    "sdxl": (
        UNET
        | {
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": ("F16", [768]),
            "conditioner.embedders.1.model.ln_final.bias": ("F16", [1280]),
        },
        "sdxl",
    ),
    "refiner": (UNET | {"conditioner.embedders.0.model.ln_final.bias": ("F16", [1280])}, "sdxl-refiner"),
    "sd2": (UNET | {"cond_stage_model.model.ln_final.bias": ("F32", [1024])}, "sd2"),
    "ldm": (UNET | {"cond_stage_model.transformer.token_emb.weight": ("F32", [30522, 1280])}, "ldm-text2img"),
    "lora": (
        {
            "lora_unet_down_blocks_0.lora_down.weight": ("F16", [4, 320]),
            "lora_unet_down_blocks_0.lora_up.weight": ("F16", [320, 4]),
        },
        "LoRA",
    ),
    "peft lora": ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": ("F16", [4, 320])}, "LoRA"),
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
    assert word in f"{report.family} {report.reasons}" and report.parameters == 0


@pytest.mark.parametrize(("inputs", "family"), [(9, "sd1-inpaint"), (8, "sd1-pix2pix")])
def test_a_unet_with_more_inputs_is_another_family(bare_file, tmp_path, inputs, family):
    key = "model.diffusion_model.input_blocks.0.0.weight"
    header = header_of(bare_file)
    path = hollow(tmp_path / "a.safetensors", header | {key: ("F32", [32, inputs, 3, 3])})
    assert ldm.inspect(path).family == family
    with pytest.raises(CheckpointError, match=family):
        ldm.load(path)


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
