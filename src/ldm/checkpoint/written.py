"""The JSON files of a diffusers folder as we write them: what diffusers needs to load the same model."""

from ldm.checkpoint.configs import FIXED, LAWS, PREDICTIONS, SPACINGS, kind
from ldm.checkpoint.diffusers import cut, folder_of
from ldm.checkpoint.fields import Json, name_in
from ldm.checkpoint.folder import tokenizer_folder
from ldm.checkpoint.pipelines import CLASSES
from ldm.clip.config import BERTConfig, CLIPConfig
from ldm.errors import CheckpointError
from ldm.family import Family, Text
from ldm.schedulers.spacing import from_zero, leading, uniform

VERSION = "0.30.0"  # of diffusers, whose form this is
SAMPLERS = {"euler": "EulerDiscreteScheduler", "euler_ancestral": "EulerAncestralDiscreteScheduler"}
SAME = {"sd2": "sd1", "sd2-v": "sd1", "sd2-inpaint": "sd1-inpaint", "sd-turbo": "sd1", "sdxl-turbo": "sdxl",
        "shapes": "sd1"}  # fmt: skip


def write(family: Family) -> dict[str, Json]:
    """Every JSON file of a folder, by its path. Raises CheckpointError for a family that has none."""
    usual = SAME.get(family.name, family.name)
    pipeline = next((name for name, known in CLASSES.items() if known == usual), None)
    config = family.unet
    odd = config.scale_shift or config.res_sampling or not (config.context_dim or config.head_dim)
    if pipeline is None or odd:
        raise CheckpointError(f"{family.name} has no folder layout; save it as one .safetensors file")
    vae = folder_of(family, "vae")
    out = {
        "model_index.json": index(family, pipeline),
        "unet/config.json": unet(family) if family.unet.context_dim else plain_unet(family),
        f"{vae}/config.json": autoencoder(family),
        "scheduler/scheduler_config.json": scheduler(family),
    }
    if family.beside == "upscale":
        out["low_res_scheduler/scheduler_config.json"] = scheduler(family) | {"_class_name": "DDPMScheduler"}
    for text in family.texts:
        out |= prompt(text)
    return out


def index(family: Family, pipeline: str) -> Json:
    """model_index.json."""
    out: Json = {
        "_class_name": pipeline, "_diffusers_version": VERSION, "_ldm_family": family.name,
        "scheduler": ["diffusers", scheduler(family)["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel" if family.unet.context_dim else "UNet2DModel"],
        folder_of(family, "vae"): ["diffusers", "VQModel" if family.vae.codes else "AutoencoderKL"],
    }  # fmt: skip
    for text in family.texts:
        if isinstance(text.config, BERTConfig):
            out |= {
                "bert": ["latent_diffusion", "LDMBertModel"],
                "tokenizer": ["transformers", "BertTokenizer"],
            }
            continue
        kind = "CLIPTextModelWithProjection" if text.pooled else "CLIPTextModel"
        out |= {text.name: ["transformers", kind], tokenizer_folder(text): ["transformers", "CLIPTokenizer"]}
    if family.vector:
        out["force_zeros_for_empty_prompt"] = family.blank
        if family.vector == "score":
            none = [None, None]
            out |= {"requires_aesthetics_score": True, "text_encoder": none, "tokenizer": none}
    elif family.beside == "upscale":
        out |= {"low_res_scheduler": ["diffusers", "DDPMScheduler"], "max_noise_level": 350}
    elif family.beside == "depth":
        out |= {"depth_estimator": [None, None], "feature_extractor": [None, None]}
    elif not family.name.startswith("ldm"):
        none = [None, None]
        out |= {"feature_extractor": none, "safety_checker": none, "requires_safety_checker": False}
    return out


def unet(family: Family) -> Json:
    """unet/config.json."""
    unet = family.unet
    cross = [depth > 0 for depth in unet.depth]
    out = FIXED["unet"] | {
        "_class_name": "UNet2DConditionModel", "in_channels": unet.in_channels,
        "out_channels": unet.out_channels, "block_out_channels": unet.channels,
        "down_block_types": ["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in cross],
        "up_block_types": ["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(cross)],
        "layers_per_block": unet.res_blocks, "cross_attention_dim": unet.context_dim,
        "attention_head_dim": unet.heads or [unet.heads_at(width) for width in unet.channels],
        "norm_num_groups": unet.groups, "sample_size": family.size // family.vae.factor,
        "transformer_layers_per_block": [max(1, depth) for depth in unet.depth],
        "use_linear_projection": unet.linear, "only_cross_attention": list(unet.crossing) or False,
        "num_class_embeds": unet.labels, "addition_embed_type": None,
    }  # fmt: skip
    if any(unet.depth) and unet.depth[-1] == 0 and family.vector == "score":
        out["transformer_layers_per_block"] = unet.mid_depth  # the middle has that of the last level there
    if unet.vector_dim:
        out |= {
            "addition_embed_type": "text_time", "addition_time_embed_dim": family.vector_part,
            "projection_class_embeddings_input_dim": unet.vector_dim,
        }  # fmt: skip
    return out


def plain_unet(family: Family) -> Json:
    """unet/config.json of one that hears no tokens."""
    unet = family.unet
    attends = [depth > 0 for depth in unet.depth]
    return FIXED["plain unet"] | {
        "_class_name": "UNet2DModel", "in_channels": unet.in_channels, "out_channels": unet.out_channels,
        "block_out_channels": unet.channels, "layers_per_block": unet.res_blocks,
        "down_block_types": ["AttnDownBlock2D" if x else "DownBlock2D" for x in attends],
        "up_block_types": ["AttnUpBlock2D" if x else "UpBlock2D" for x in reversed(attends)],
        "attention_head_dim": unet.head_dim, "norm_num_groups": unet.groups,
        "sample_size": family.size // family.vae.factor,
    }  # fmt: skip


def autoencoder(family: Family) -> Json:
    """vae/config.json."""
    vae = family.vae
    own: Json = {"force_upcast": vae.overflows}
    if vae.codes:
        own = {"num_vq_embeddings": vae.codes, "vq_embed_dim": None}
    return FIXED[kind(family, "vae")] | own | {
        "_class_name": "VQModel" if vae.codes else "AutoencoderKL", "block_out_channels": vae.channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(vae.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(vae.channels), "layers_per_block": vae.res_blocks,
        "latent_channels": vae.latent_channels, "norm_num_groups": vae.groups, "sample_size": family.size,
        "scaling_factor": vae.scale,
    }  # fmt: skip


def prompt(text: Text) -> dict[str, Json]:
    """The files of a text encoder and of its tokenizer."""
    where, config = tokenizer_folder(text), text.config
    if isinstance(config, BERTConfig):
        return {
            "bert/config.json": FIXED["bert"] | {
                "architectures": ["LDMBertModel"], "model_type": "ldmbert", "d_model": config.width,
                "encoder_attention_heads": config.heads, "encoder_ffn_dim": 4 * config.width,
                "encoder_layers": config.layers, "num_hidden_layers": config.layers,
                "head_dim": config.head_dim, "max_position_embeddings": config.length, "pad_token_id": 0,
                "vocab_size": config.vocab,
            },
            f"{where}/tokenizer_config.json": {
                "tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True,
            },
        }  # fmt: skip
    assert isinstance(config, CLIPConfig)
    config = cut(config)
    kind = "CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"
    return {
        f"{text.name}/config.json": FIXED["text_encoder"] | {
            "architectures": [kind], "model_type": "clip_text_model", "hidden_size": config.width,
            "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "intermediate_size": config.hidden,
            "vocab_size": config.vocab, "max_position_embeddings": config.length,
            "hidden_act": config.activation, "projection_dim": config.projection or config.width,
            "bos_token_id": config.vocab - 2, "eos_token_id": config.vocab - 1,
            "pad_token_id": config.vocab - 1,
        },
        f"{where}/tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": config.length, "do_lower_case": True,
            "pad_token": text.pad,
        },
        f"{where}/special_tokens_map.json": {
            "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": text.pad,
            "unk_token": "<|endoftext|>",
        },
    }  # fmt: skip


def scheduler(family: Family) -> Json:
    """scheduler/scheduler_config.json."""
    schedule = family.schedule
    offset = 0 if family.spacing is from_zero else 1
    spacing = leading if family.spacing in (uniform, from_zero) else family.spacing  # as good as the same
    return FIXED["scheduler"] | {
        "_class_name": SAMPLERS.get(family.sampler, "DDIMScheduler"),
        "beta_start": schedule.beta_start, "beta_end": schedule.beta_end,
        "beta_schedule": name_in(LAWS, schedule.law), "num_train_timesteps": schedule.steps,
        "rescale_betas_zero_snr": schedule.zero_snr,
        "prediction_type": name_in(PREDICTIONS, family.prediction), "clip_sample": False,
        "steps_offset": offset, "timestep_spacing": name_in(SPACINGS, spacing),
        "set_alpha_to_one": family.set_alpha_to_one,
    }  # fmt: skip
