"""The JSON files of a diffusers folder: what they add to the tensors."""

from collections.abc import Mapping
from dataclasses import replace
from reprlib import repr as brief

from ldm.checkpoint.diffusers import cut
from ldm.checkpoint.fields import Json, choose, flag, real, whole, wrong
from ldm.clip.config import CLIPConfig
from ldm.clip.text import ACTIVATIONS
from ldm.errors import CheckpointError
from ldm.family import Family, Text
from ldm.schedulers import EPS, X0, Prediction, Schedule, V, linear, scaled_linear
from ldm.schedulers.spacing import Spacing, from_zero, leading, linspace, trailing, uniform
from ldm.unet.config import UNetConfig

MOST_SCALE = 1e4  # of latents
MOST_SIDE = 4096  # of a latent
MOST_STEPS = 10**5  # of training's noise levels

# Settings of diffusers' networks of which ours have only one value.
EVERY_UNET: Json = {
    "act_fn": "silu", "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-5, "class_embed_type": None,
    "time_embedding_type": "positional", "resnet_time_scale_shift": "default",
}  # fmt: skip
EVERY_VAE: Json = {"act_fn": "silu", "in_channels": 3, "out_channels": 3, "mid_block_add_attention": True}
FIXED: dict[str, Json] = {
    "unet": EVERY_UNET | {
        "dual_cross_attention": False, "time_cond_proj_dim": None, "conv_in_kernel": 3,
        "conv_out_kernel": 3, "encoder_hid_dim": None, "attention_type": "default",
    },
    "plain unet": EVERY_UNET | {"add_attention": True, "downsample_type": "conv", "upsample_type": "conv"},
    "vae": EVERY_VAE | {
        "shift_factor": None, "latents_mean": None, "use_quant_conv": True, "use_post_quant_conv": True,
    },
    "quantised vae": EVERY_VAE | {"norm_type": "group", "lookup_from_codebook": False},
    "text_encoder": {"layer_norm_eps": 1e-5},
    "text_encoder_2": {"layer_norm_eps": 1e-5},
    "bert": {"activation_function": "gelu"},
    "scheduler": {"trained_betas": None, "thresholding": False},
}  # fmt: skip

PREDICTIONS: dict[str, Prediction] = {"epsilon": EPS, "v_prediction": V, "sample": X0}
LAWS = {"scaled_linear": scaled_linear, "linear": linear}
# Families whose pipelines in diffusers set steps_offset to 1, whatever a config says.
MOVED = ("shapes", "sd1", "sd1-inpaint", "sd2", "sd2-v", "sd2-inpaint", "sd-turbo")
SPACINGS: dict[str, Spacing] = {"leading": leading, "trailing": trailing, "linspace": linspace}


def apply(family: Family, configs: Mapping[str, Json]) -> Family:
    """A family with the sizes of a folder, and what its configs add: heads, groups, scale and schedule.

    configs  the name of each network, and "scheduler", to their JSON.
    Raises CheckpointError for a config that is damaged or asks for what our networks do not do.
    """
    for name, config in configs.items():
        refuse_others(name, config, FIXED[kind(family, name)])
    unet, vae = configs["unet"], configs["vae"]
    found = replace(
        family,
        unet=unet_of(family.unet, unet),
        vae=replace(
            family.vae,
            groups=whole("vae/config.json", vae, "norm_num_groups", family.vae.groups),
            scale=real("vae/config.json", vae, "scaling_factor", family.vae.scale, 0, MOST_SCALE),
            # diffusers writes it for every autoencoder, but only its SDXL pipelines heed it
            overflows=family.vae.overflows and flag("vae/config.json", vae, "force_upcast", True),
        ),
        texts=tuple(text_of(text, configs[text.name]) for text in family.texts),
    )
    if unet.get("sample_size") is not None:
        side = whole("unet/config.json", unet, "sample_size", 1, high=MOST_SIDE)
        found = replace(found, size=side * found.vae.factor)
    return process(found, configs["scheduler"])


def unet_of(preset: UNetConfig, config: Json) -> UNetConfig:
    """What unet/config.json adds to the sizes of a UNet."""
    file = "unet/config.json"
    if (added := config.get("addition_embed_type")) not in (None, "text_time"):
        raise wrong(file, "addition_embed_type", "null or 'text_time'", added)
    crossing = config.get("only_cross_attention", False)
    levels = crossing if isinstance(crossing, list) else [crossing] * len(preset.channels)
    for level in levels:
        flag(file, {"only_cross_attention": level}, "only_cross_attention", False)
    return replace(
        heads(preset, config),
        groups=whole(file, config, "norm_num_groups", preset.groups),
        crossing=tuple(levels) if any(levels) else (),
        linear=flag(file, config, "use_linear_projection", False),
    )


def text_of(text: Text, config: Json) -> Text:
    """What a text encoder's config.json adds to its sizes."""
    if not isinstance(text.config, CLIPConfig):
        return text
    return replace(text, config=clip_of(f"{text.name}/config.json", text.config, config))


def clip_of(file: str, preset: CLIPConfig, config: Json) -> CLIPConfig:
    """The same of a CLIP."""
    return replace(
        preset,
        heads=whole(file, config, "num_attention_heads", preset.heads),
        vocab=whole(file, config, "vocab_size", preset.vocab),
        length=whole(file, config, "max_position_embeddings", preset.length),
        activation=choose(file, config, "hidden_act", {a: a for a in ACTIVATIONS}, "quick_gelu"),
    )


def process(family: Family, config: Json) -> Family:
    """The diffusion process of a scheduler_config.json; which sampler to use stays the family's affair."""
    file = "scheduler/scheduler_config.json"
    name = str(config.get("_class_name", ""))
    euler = name.startswith("Euler")
    schedule = Schedule(
        beta_start=real(file, config, "beta_start", 0.0001, 0, 1),
        beta_end=real(file, config, "beta_end", 0.02, 0, 1),
        steps=whole(file, config, "num_train_timesteps", 1000, high=MOST_STEPS),
        law=choose(file, config, "beta_schedule", LAWS, "linear"),
        zero_snr=flag(file, config, "rescale_betas_zero_snr", False),
    )
    spaced = choose(file, config, "timestep_spacing", SPACINGS, "linspace" if euler else "leading")
    if spaced is leading:
        spaced = moved(family, config)
    ends_clean = name == "DDIMScheduler" or family.set_alpha_to_one
    return replace(
        family,
        schedule=schedule,
        prediction=choose(file, config, "prediction_type", PREDICTIONS, "epsilon"),
        spacing=spaced,
        set_alpha_to_one=flag(file, config, "set_alpha_to_one", ends_clean),
    )


def moved(family: Family, config: Json) -> Spacing:
    """Leading times, moved up by a config's steps_offset, 0 or 1."""
    file = "scheduler/scheduler_config.json"
    if family.name not in MOVED and whole(file, config, "steps_offset", 0, low=0, high=1) == 0:
        return from_zero
    return uniform if family.spacing is uniform else leading


def kind(family: Family, name: str) -> str:
    """Which of diffusers' classes a network of a family is there, by its name in `FIXED`."""
    if name == "unet" and family.unet.context_dim is None:
        return "plain unet"
    return "quantised vae" if name == "vae" and family.vae.codes else name


def refuse_others(name: str, config: Json, fixed: Json) -> None:
    """Raises CheckpointError for a setting under which our networks would compute something else."""
    for field, only in fixed.items():
        value = config.get(field, only)
        if value is not None and value != only:
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            raise CheckpointError(
                f"{name}/{file}: {field} is {brief(value)}, and networks with another than {only!r} "
                "cannot be loaded; get another model"
            )


def agree(family: Family, configs: Mapping[str, Json]) -> None:
    """Raises CheckpointError where a config contradicts the tensors beside it, which must be complete."""
    unet, vae = family.unet, family.vae
    found: dict[str, Json] = {
        "unet": {"block_out_channels": unet.channels, "layers_per_block": unet.res_blocks,
                 "cross_attention_dim": unet.context_dim, "in_channels": unet.in_channels,
                 "num_class_embeds": unet.labels, "projection_class_embeddings_input_dim": unet.vector_dim},
        "vae": {"block_out_channels": vae.channels, "layers_per_block": vae.res_blocks,
                "latent_channels": vae.latent_channels, "num_vq_embeddings": vae.codes},
    }  # fmt: skip
    for text in family.texts:
        if isinstance(config := text.config, CLIPConfig):
            found[text.name] = {
                "hidden_size": config.width, "num_hidden_layers": cut(config).layers,
                "intermediate_size": config.hidden,
            }  # fmt: skip
    for name, fields in found.items():
        for field, value in fields.items():
            said = configs[name].get(field, value)
            if (tuple(said) if isinstance(said, list) else said) != value:
                raise CheckpointError(
                    f"{name}/config.json: {field} is {brief(said)}, but the tensors have {value!r}; "
                    "the two belong to different models, so get both from one"
                )


def heads(preset: UNetConfig, config: Json) -> UNetConfig:
    """A UNet with its heads, of which diffusers writes the number, under either of two names.

    One number is for all levels; of a list, one for each, the width of a head must be the same everywhere.
    Of a UNet that hears no tokens it is the width of a head, as the name says.
    """
    file = "unet/config.json"
    if preset.context_dim is None:
        return replace(preset, heads=None, head_dim=whole(file, config, "attention_head_dim", 8))
    for field in ("num_attention_heads", "attention_head_dim"):  # the first wins where both are given
        value = config.get(field)
        if value is None:
            continue
        levels = value if isinstance(value, list) else [value]
        numbers = [whole(file, {field: level}, field, 1) for level in levels]
        if len(set(numbers)) == 1:
            return replace(preset, heads=numbers[0], head_dim=None)
        dims = {width / n for width, n in zip(preset.channels, numbers, strict=False)}
        if len(numbers) != len(preset.channels) or len(dims) != 1 or not (dim := dims.pop()).is_integer():
            raise wrong(file, field, "one number of heads, or heads of one width", value)
        return replace(preset, heads=None, head_dim=int(dim))
    return preset
