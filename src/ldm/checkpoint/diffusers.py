"""The folder layout of diffusers: rules of names, and sizes read off the files."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ldm.checkpoint.detect import SD1_INPUTS, Finding
from ldm.checkpoint.evidence import Shapes, commonest, count, read_or, under, vote
from ldm.checkpoint.fields import text
from ldm.checkpoint.original import text_rules, transformer_rules
from ldm.checkpoint.sizes import text_config
from ldm.checkpoint.table import Rule
from ldm.families import Family
from ldm.unet.config import UNetConfig
from ldm.vae.config import VAEConfig

# Tensors a folder may carry and no network uses.
IGNORED = (
    r"text_encoder/(text_model\.)?embeddings\.position_ids",
    r"text_encoder/(logit_scale|text_projection\.weight)",  # of the whole CLIP
)

RES = r"resnets\.\d+\.(conv[12]|norm2|time_emb_proj)\.(weight|bias)"

CLASSES = {  # of pipelines, to the family name of their usual weights
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionImg2ImgPipeline": "sd1",
    "StableDiffusionInpaintPipeline": "sd1-inpaint",
    "StableDiffusionInstructPix2PixPipeline": "sd1-pix2pix",
    "StableDiffusionUpscalePipeline": "sd-x4-upscaler",
    "StableDiffusionDepth2ImgPipeline": "sd2-depth",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl-refiner",
    "LDMTextToImagePipeline": "ldm-text2img",
}


def detect(index: Mapping[str, Any], unet: Mapping[str, Any]) -> Finding:
    """The family of a folder, by model_index.json and unet/config.json. Raises CheckpointError."""
    if own := text("model_index.json", index, "_ldm_family", ""):
        return Finding(own, [f"model_index.json has _ldm_family {own!r}"])
    name = index.get("_class_name")
    family = CLASSES.get(name) if isinstance(name, str) else None
    reasons = [f"model_index.json has _class_name {name!r}"]
    if family == "sd1" and unet.get("use_linear_projection"):
        return Finding("sd2", [*reasons, "unet/config.json has use_linear_projection"])
    inputs = unet.get("in_channels")
    if family == "sd1" and inputs in (8, 9) and unet.get("out_channels", 4) == 4:
        return Finding(SD1_INPUTS[inputs], [*reasons, f"unet/config.json has {inputs} in_channels"])
    return Finding(family, reasons)


def family(shapes: Mapping[str, Shapes], preset: Family, prefix: str) -> Family:
    """A preset with the sizes of a folder's tensors, as far as it has them; prefix: of its text encoder."""
    return replace(
        preset,
        unet=read_or(preset.unet, unet_config, shapes["unet"]),
        vae=read_or(preset.vae, vae_config, shapes["vae"]),
        text=read_or(preset.text, text_config, under(shapes["text_encoder"], prefix)),
    )


def unet_config(shapes: Shapes, preset: UNetConfig) -> UNetConfig:
    """The sizes of a UNet; what sizes cannot tell is the preset's."""
    levels = range(count(shapes, r"down_blocks\.(\d+)\."))
    latent = vote(shapes, r"conv_out\.(weight|bias)")
    return replace(
        preset,
        # a conv_in that is missing is missed by the name and size that it would have
        in_channels=vote(shapes, r"conv_in\.weight", axis=1) if "conv_in.weight" in shapes else latent,
        out_channels=latent,
        channels=tuple(vote(shapes, rf"down_blocks\.{i}\.{RES}") for i in levels),
        depth=tuple(level_depth(shapes, rf"down_blocks\.{i}") for i in levels),
        mid_depth=level_depth(shapes, "mid_block"),
        res_blocks=commonest([count(shapes, rf"down_blocks\.{i}\.resnets\.(\d+)\.") for i in levels]),
        context_dim=vote(shapes, r".*\.attn2\.to_[kv]\.weight", axis=1),
    )


def level_depth(shapes: Shapes, level: str) -> int:
    """Transformer blocks of each attention of a level."""
    attentions = range(count(shapes, rf"{level}\.attentions\.(\d+)\."))
    return commonest(
        [count(shapes, rf"{level}\.attentions\.{j}\.transformer_blocks\.(\d+)\.") for j in attentions] or [0]
    )


def vae_config(shapes: Shapes, preset: VAEConfig) -> VAEConfig:
    """The sizes of an autoencoder; what sizes cannot tell is the preset's."""
    levels = range(count(shapes, r"encoder\.down_blocks\.(\d+)\."))
    return replace(
        preset,
        channels=tuple(vote(shapes, rf"encoder\.down_blocks\.{i}\.{RES}") for i in levels),
        res_blocks=commonest(
            [count(shapes, rf"encoder\.down_blocks\.{i}\.resnets\.(\d+)\.") for i in levels]
        ),
        latent_channels=vote(shapes, r"(quant_conv|encoder\.conv_out)\.(weight|bias)") // 2,
    )


def unet_rules(config: UNetConfig) -> list[Rule]:
    """Our names of a UNet to this layout's."""
    return [
        Rule(r"^time\.fc(\d)", r"time_embedding.linear_\1"),
        Rule(r"^vector\.fc(\d)", r"add_embedding.linear_\1"),
        Rule(r"^label\b", "class_embedding"),
        Rule(r"^norm_out", "conv_norm_out"),
        Rule(r"^(down|up)\.(\d)\.res", r"\1_blocks.\2.resnets"),
        Rule(r"^(down|up)\.(\d)\.attn", r"\1_blocks.\2.attentions"),
        Rule(r"^(down|up)\.(\d)\.(down|up)\b", r"\1_blocks.\2.\3samplers.0.conv"),
        Rule(r"^mid\.res1", "mid_block.resnets.0"),
        Rule(r"^mid\.res2", "mid_block.resnets.1"),
        Rule(r"^mid\.attn", "mid_block.attentions.0"),
        Rule(r"\.time\b", ".time_emb_proj"),
        Rule(r"\.skip\b", ".conv_shortcut"),
        *transformer_rules(),
    ]


NEW_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
OLD_ATTENTION = {"q": "query", "k": "key", "v": "value", "out": "proj_attn"}  # before diffusers 0.17


def vae_rules(attention: Mapping[str, str] = NEW_ATTENTION) -> list[Rule]:
    """Our names of an autoencoder to this layout's."""
    return [
        Rule(r"^to_moments", "quant_conv"),
        Rule(r"^from_latent", "post_quant_conv"),
        Rule(r"\.(down|up)\.(\d)\.res", r".\1_blocks.\2.resnets"),
        Rule(r"\.(down|up)\.(\d)\.(down|up)\b", r".\1_blocks.\2.\3samplers.0.conv"),
        Rule(r"\.mid\.0", ".mid_block.resnets.0"),
        Rule(r"\.mid\.2", ".mid_block.resnets.1"),
        Rule(r"\.mid\.1\.norm", ".mid_block.attentions.0.group_norm"),
        *(Rule(rf"\.mid\.1\.attn\.{a}\b", f".mid_block.attentions.0.{b}") for a, b in attention.items()),
        Rule(r"\.norm_out", ".conv_norm_out"),
        Rule(r"\.skip\b", ".conv_shortcut"),
    ]


__all__ = ["detect", "family", "text_rules", "unet_rules", "vae_rules"]
