"""The JSON files of a diffusers folder: what they add to the tensors, and how we write them."""

from collections.abc import Mapping
from dataclasses import replace
from reprlib import repr as brief

from ldm.checkpoint.fields import Json, choose, flag, name_in, real, whole, wrong
from ldm.clip.text import ACTIVATIONS
from ldm.errors import CheckpointError
from ldm.families import Family
from ldm.schedulers import EPS, X0, Prediction, Schedule, V, linear, scaled_linear
from ldm.schedulers.spacing import Spacing, leading, linspace, trailing

MOST_SCALE = 1e4  # of latents
MOST_SIDE = 4096  # of a latent
MOST_STEPS = 10**5  # of training's noise levels

# Settings of diffusers' networks of which ours have only one value.
FIXED: dict[str, Json] = {
    "unet": {
        "act_fn": "silu", "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0,
        "downsample_padding": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-5, "only_cross_attention": False,
        "dual_cross_attention": False, "use_linear_projection": False, "class_embed_type": None,
        "addition_embed_type": None, "num_class_embeds": None, "time_embedding_type": "positional",
        "resnet_time_scale_shift": "default", "time_cond_proj_dim": None, "conv_in_kernel": 3,
        "conv_out_kernel": 3, "encoder_hid_dim": None, "attention_type": "default",
    },
    "vae": {
        "act_fn": "silu", "in_channels": 3, "out_channels": 3, "shift_factor": None, "latents_mean": None,
        "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
    },
    "text_encoder": {"layer_norm_eps": 1e-5},
    "scheduler": {"trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False},
}  # fmt: skip

PREDICTIONS: dict[str, Prediction] = {"epsilon": EPS, "v_prediction": V, "sample": X0}
LAWS = {"scaled_linear": scaled_linear, "linear": linear}
SPACINGS: dict[str, Spacing] = {"leading": leading, "trailing": trailing, "linspace": linspace}


def apply(family: Family, configs: Mapping[str, Json]) -> Family:
    """A family with the sizes of a folder, and what its configs add: heads, groups, scale and schedule.

    configs  "unet", "vae", "text_encoder" and "scheduler" to their JSON.
    Raises CheckpointError for a config that is damaged or asks for what our networks do not do.
    """
    for name, config in configs.items():
        refuse_others(name, config)
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    file = "text_encoder/config.json"
    found = replace(
        family,
        unet=replace(
            family.unet,
            heads=heads(unet, family.unet.heads),
            groups=whole("unet/config.json", unet, "norm_num_groups", family.unet.groups),
        ),
        vae=replace(
            family.vae,
            groups=whole("vae/config.json", vae, "norm_num_groups", family.vae.groups),
            scale=real("vae/config.json", vae, "scaling_factor", family.vae.scale, 0, MOST_SCALE),
        ),
        text=replace(
            family.text,
            heads=whole(file, text, "num_attention_heads", family.text.heads),
            vocab=whole(file, text, "vocab_size", family.text.vocab),
            length=whole(file, text, "max_position_embeddings", family.text.length),
            activation=choose(file, text, "hidden_act", {a: a for a in ACTIVATIONS}, "quick_gelu"),
        ),
    )
    if unet.get("sample_size") is not None:
        side = whole("unet/config.json", unet, "sample_size", 1, high=MOST_SIDE)
        found = replace(found, size=side * found.vae.factor)
    return process(found, configs["scheduler"])


def process(family: Family, config: Json) -> Family:
    """The diffusion process of a scheduler_config.json; which sampler to use stays the family's affair."""
    # diffusers' Stable Diffusion pipelines set steps_offset to 1 and clip_sample to false, whatever is said
    file = "scheduler/scheduler_config.json"
    euler = str(config.get("_class_name", "")).startswith("Euler")
    schedule = Schedule(
        beta_start=real(file, config, "beta_start", 0.0001, 0, 1),
        beta_end=real(file, config, "beta_end", 0.02, 0, 1),
        steps=whole(file, config, "num_train_timesteps", 1000, high=MOST_STEPS),
        law=choose(file, config, "beta_schedule", LAWS, "linear"),
    )
    return replace(
        family,
        schedule=schedule,
        prediction=choose(file, config, "prediction_type", PREDICTIONS, "epsilon"),
        spacing=choose(file, config, "timestep_spacing", SPACINGS, "linspace" if euler else "leading"),
        set_alpha_to_one=flag(file, config, "set_alpha_to_one", family.set_alpha_to_one),
    )


def refuse_others(name: str, config: Json) -> None:
    """Raises CheckpointError for a setting under which our networks would compute something else."""
    for field, only in FIXED[name].items():
        value = config.get(field, only)
        if value is not None and value != only:
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            raise CheckpointError(
                f"{name}/{file}: {field} is {brief(value)}, and networks with another than {only!r} "
                "cannot be loaded; get another model"
            )


def agree(family: Family, configs: Mapping[str, Json]) -> None:
    """Raises CheckpointError where a config contradicts the tensors beside it, which must be complete."""
    unet, vae, text = family.unet, family.vae, family.text
    found: dict[str, Json] = {
        "unet": {"block_out_channels": unet.channels, "layers_per_block": unet.res_blocks,
                 "cross_attention_dim": unet.context_dim, "in_channels": unet.in_channels},
        "vae": {"block_out_channels": vae.channels, "layers_per_block": vae.res_blocks,
                "latent_channels": vae.latent_channels},
        "text_encoder": {"hidden_size": text.width, "num_hidden_layers": text.layers,
                         "intermediate_size": text.hidden},
    }  # fmt: skip
    for name, fields in found.items():
        for field, value in fields.items():
            said = configs[name].get(field, value)
            if (tuple(said) if isinstance(said, list) else said) != value:
                raise CheckpointError(
                    f"{name}/config.json: {field} is {brief(said)}, but the tensors have {value!r}; "
                    "the two belong to different models, so get both from one"
                )


def heads(config: Json, default: int | None) -> int | None:
    """The number of heads, which diffusers writes under either of two names, for one level or for all."""
    found = []
    for field in ("num_attention_heads", "attention_head_dim"):  # the first wins where both are given
        value = config.get(field)
        if value is None:
            continue
        levels = value if isinstance(value, list) else [value]
        numbers = {whole("unet/config.json", {field: level}, field, 1) for level in levels}
        if len(numbers) != 1:
            raise wrong("unet/config.json", field, "one number for all levels", value)
        found.append(numbers.pop())
    return found[0] if found else default


def write(family: Family) -> dict[str, Json]:
    """Every JSON file of a folder, by its path: what diffusers needs to load the same model."""
    unet, vae, text, schedule = family.unet, family.vae, family.text, family.schedule
    cross = [depth > 0 for depth in unet.depth]
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0",
            "_ldm_family": family.name,
            "feature_extractor": [None, None], "safety_checker": [None, None],
            "requires_safety_checker": False,
            "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet/config.json": FIXED["unet"] | {
            "_class_name": "UNet2DConditionModel", "in_channels": unet.in_channels,
            "out_channels": unet.out_channels, "block_out_channels": unet.channels,
            "down_block_types": ["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in cross],
            "up_block_types": ["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(cross)],
            "layers_per_block": unet.res_blocks, "cross_attention_dim": unet.context_dim,
            "attention_head_dim": unet.heads, "norm_num_groups": unet.groups,
            "transformer_layers_per_block": [max(1, depth) for depth in unet.depth],
            "sample_size": family.size // vae.factor,
        },
        "vae/config.json": FIXED["vae"] | {
            "_class_name": "AutoencoderKL", "block_out_channels": vae.channels,
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.channels), "layers_per_block": vae.res_blocks,
            "latent_channels": vae.latent_channels, "norm_num_groups": vae.groups, "sample_size": family.size,
            "scaling_factor": vae.scale,
        },
        "text_encoder/config.json": FIXED["text_encoder"] | {
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": text.width,
            "num_hidden_layers": text.layers, "num_attention_heads": text.heads,
            "intermediate_size": text.hidden,
            "vocab_size": text.vocab, "max_position_embeddings": text.length, "hidden_act": text.activation,
            "projection_dim": text.width, "bos_token_id": text.vocab - 2, "eos_token_id": text.vocab - 1,
            "pad_token_id": text.vocab - 1,
        },
        "tokenizer/tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": text.length, "do_lower_case": True,
            "pad_token": family.pad,
        },
        "tokenizer/special_tokens_map.json": {
            "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": family.pad,
            "unk_token": "<|endoftext|>",
        },
        "scheduler/scheduler_config.json": FIXED["scheduler"] | {
            "_class_name": "DDIMScheduler", "beta_start": schedule.beta_start, "beta_end": schedule.beta_end,
            "beta_schedule": name_in(LAWS, schedule.law), "num_train_timesteps": schedule.steps,
            "prediction_type": name_in(PREDICTIONS, family.prediction), "clip_sample": False,
            "steps_offset": 1, "timestep_spacing": name_in(SPACINGS, family.spacing),
            "set_alpha_to_one": family.set_alpha_to_one,
        },
    }  # fmt: skip
