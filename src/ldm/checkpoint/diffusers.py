"""The folder layout of diffusers: rules of names, and sizes read off the files."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ldm.checkpoint import sizes
from ldm.checkpoint.evidence import Shapes, commonest, count, read_or, under, vote
from ldm.checkpoint.original import text_rules, transformer_rules
from ldm.checkpoint.sizes import size
from ldm.checkpoint.table import Rule
from ldm.clip.config import BERTConfig, ClassConfig, CLIPConfig
from ldm.family import Family
from ldm.unet.config import UNetConfig
from ldm.vae.config import VAEConfig

# Tensors a folder may carry and no network uses.
IGNORED = (
    r"text_encoder(_2)?/(text_model\.)?embeddings\.position_ids",
    r"text_encoder(_2)?/(logit_scale|text_projection\.weight)",  # of the whole CLIP
    r"bert/to_logits\.(weight|bias)",  # which once guessed words
)

RES = r"resnets\.\d+\.(conv[12]|norm2|time_emb_proj)\.(weight|bias)"


def folder_of(family: Family, part: str) -> str:
    """The folder in which a network lies."""
    return "vqvae" if part == "vae" and family.name.startswith("ldm-") else part


def family(shapes: Mapping[str, Shapes], preset: Family, prefixes: Mapping[str, str], side: Shapes) -> Family:
    """A preset with the sizes of a folder's tensors, as far as it has them.

    prefixes  of the names of each text encoder's tensors
    side      tensors of a single file that are not in a folder
    """
    return replace(
        preset,
        unet=read_or(preset.unet, unet_config, shapes["unet"]),
        vae=read_or(preset.vae, vae_config, shapes["vae"]),
        texts=tuple(
            replace(
                text,
                config=completed(
                    text_config(under(shapes[text.name], prefixes[text.name]), text.config), text.config, side
                ),
            )
            for text in preset.texts
        ),
    )


def text_config(shapes: Shapes, preset: Any) -> Any:
    """The sizes of a text encoder. A last layer that is not heard, but whose norm is, is not in a folder."""
    if isinstance(preset, BERTConfig):
        return read_or(preset, bert_config, shapes)
    return read_or(cut(preset), sizes.text_config, shapes)


def completed(config: Any, preset: Any, side: Shapes) -> Any:
    """A text encoder with the last layers that were put aside, where they were."""
    if isinstance(preset, CLIPConfig) and any(f".resblocks.{config.layers}." in key for key in side):
        return replace(config, layers=config.layers + preset.skip, skip=preset.skip)
    return config


def kept(config: Any, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Our names of a text encoder's tensors: those that are in a folder, and those that are not."""
    names = list(names)
    layers = cut(config).layers if isinstance(config, CLIPConfig) else len(names)
    last = [name for name in names if (hit := re.match(r"blocks\.(\d+)\.", name)) and int(hit[1]) >= layers]
    return [name for name in names if name not in set(last)], last


def cut(config: CLIPConfig) -> CLIPConfig:
    """A text encoder as a folder has it."""
    whole = not config.final_norm or config.projection
    return config if whole else replace(config, layers=config.layers - config.skip, skip=0)


def bert_config(shapes: Shapes, preset: BERTConfig) -> BERTConfig:
    """The sizes of LDM's text encoder."""
    inner = vote(shapes, r".*\.self_attn\.[qkv]_proj\.weight")
    return replace(
        preset,
        width=vote(shapes, r".*\.(self_attn_layer_norm|final_layer_norm)\.(weight|bias)"),
        layers=count(shapes, r"model\.layers\.(\d+)\."),
        head_dim=inner // preset.heads,
    )


def unet_config(shapes: Shapes, preset: UNetConfig) -> UNetConfig:
    """The sizes of a UNet; what sizes cannot tell is the preset's."""
    levels = range(count(shapes, r"down_blocks\.(\d+)\."))
    latent = vote(shapes, r"conv_out\.(weight|bias)")
    more = preset.in_channels - preset.out_channels
    return replace(
        preset,
        # a conv_in that is missing is missed by the name and size that it would have
        in_channels=size(shapes, "conv_in.weight", axis=1) or latent + more,
        out_channels=latent,
        channels=tuple(vote(shapes, rf"down_blocks\.{i}\.{RES}") for i in levels),
        depth=tuple(level_depth(shapes, rf"down_blocks\.{i}") for i in levels),
        mid_depth=level_depth(shapes, "mid_block"),
        res_blocks=commonest([count(shapes, rf"down_blocks\.{i}\.resnets\.(\d+)\.") for i in levels]),
        context_dim=vote(shapes, r".*\.attn2\.to_[kv]\.weight", axis=1) if preset.context_dim else None,
        vector_dim=size(shapes, "add_embedding.linear_1.weight", axis=1) or preset.vector_dim,
        labels=size(shapes, "class_embedding.weight") or preset.labels,
    )


def level_depth(shapes: Shapes, level: str) -> int:
    """Transformer blocks of each attention of a level, 1 of a plain one."""
    places = [rf"{level}\.attentions\.{j}" for j in range(count(shapes, rf"{level}\.attentions\.(\d+)\."))]
    return commonest([max(1, count(shapes, rf"{at}\.transformer_blocks\.(\d+)\.")) for at in places] or [0])


def vae_config(shapes: Shapes, preset: VAEConfig) -> VAEConfig:
    """The sizes of an autoencoder; what sizes cannot tell is the preset's."""
    levels = range(count(shapes, r"encoder\.down_blocks\.(\d+)\."))
    moments = vote(shapes, r"(quant_conv|encoder\.conv_out)\.(weight|bias)")
    codes = size(shapes, "quantize.embedding.weight") or preset.codes
    return replace(
        preset,
        channels=tuple(vote(shapes, rf"encoder\.down_blocks\.{i}\.{RES}") for i in levels),
        res_blocks=commonest(
            [count(shapes, rf"encoder\.down_blocks\.{i}\.resnets\.(\d+)\.") for i in levels]
        ),
        latent_channels=moments if codes else moments // 2,
        codes=codes,
    )


NEW_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
OLD_ATTENTION = {"q": "query", "k": "key", "v": "value", "out": "proj_attn"}  # before diffusers 0.17


def attention_of(names: Iterable[str]) -> dict[str, str]:
    """The names of plain attention that a network has."""
    return OLD_ATTENTION if any(".query." in name for name in names) else NEW_ATTENTION


def unet_rules(config: UNetConfig, attention: Mapping[str, str] = NEW_ATTENTION) -> list[Rule]:
    """Our names of a UNet to this layout's; attention: its names where it is plain."""
    sampler = "0" if config.res_sampling else "0.conv"
    place = r"^(mid\.attn|(?:down|up)\.\d\.attn\.\d)"
    plain = [
        Rule(rf"{place}\.norm", r"\1.group_norm"),
        *(Rule(rf"{place}\.attn\.{a}\b", rf"\1.{b}") for a, b in attention.items()),
    ]
    return [
        *([] if config.context_dim else plain),
        Rule(r"^time\.fc(\d)", r"time_embedding.linear_\1"),
        Rule(r"^vector\.fc(\d)", r"add_embedding.linear_\1"),
        Rule(r"^label\b", "class_embedding"),
        Rule(r"^norm_out", "conv_norm_out"),
        Rule(r"^(down|up)\.(\d)\.res", r"\1_blocks.\2.resnets"),
        Rule(r"^(down|up)\.(\d)\.attn", r"\1_blocks.\2.attentions"),
        Rule(r"^(down|up)\.(\d)\.(down|up)\b", rf"\1_blocks.\2.\3samplers.{sampler}"),
        Rule(r"^mid\.res1", "mid_block.resnets.0"),
        Rule(r"^mid\.res2", "mid_block.resnets.1"),
        Rule(r"^mid\.attn", "mid_block.attentions.0"),
        Rule(r"\.time\b", ".time_emb_proj"),
        Rule(r"\.skip\b", ".conv_shortcut"),
        *transformer_rules(config.linear),
    ]


def vae_rules(attention: Mapping[str, str] = NEW_ATTENTION) -> list[Rule]:
    """Our names of an autoencoder to this layout's."""
    return [
        Rule(r"^to_moments", "quant_conv"),
        Rule(r"^from_latent", "post_quant_conv"),
        Rule(r"^codebook\.codes", "quantize.embedding"),
        Rule(r"\.(down|up)\.(\d)\.res", r".\1_blocks.\2.resnets"),
        Rule(r"\.(down|up)\.(\d)\.(down|up)\b", r".\1_blocks.\2.\3samplers.0.conv"),
        Rule(r"\.mid\.0", ".mid_block.resnets.0"),
        Rule(r"\.mid\.2", ".mid_block.resnets.1"),
        Rule(r"\.mid\.1\.norm", ".mid_block.attentions.0.group_norm"),
        *(Rule(rf"\.mid\.1\.attn\.{a}\b", f".mid_block.attentions.0.{b}") for a, b in attention.items()),
        Rule(r"\.norm_out", ".conv_norm_out"),
        Rule(r"\.skip\b", ".conv_shortcut"),
    ]


def text_prefix(names: Iterable[str]) -> str:
    """The prefix of a text encoder's tensors, which new versions of transformers leave off."""
    return "text_model." if any(name.startswith("text_model.") for name in names) else ""


def rules(family: Family, prefixes: Sequence[str], old_attention: bool) -> dict[str, list[Rule]]:
    """The rules of each network of a family, by its name."""
    texts = zip(family.texts, prefixes, strict=True)
    attention = OLD_ATTENTION if old_attention else NEW_ATTENTION
    return {
        "unet": unet_rules(family.unet, attention),
        "vae": vae_rules(attention),
        **{text.name: prompt_rules(text.config, prefix) for text, prefix in texts},
    }


def prompt_rules(config: CLIPConfig | BERTConfig | ClassConfig, prefix: str) -> list[Rule]:
    """Our names of what hears the prompt to this layout's."""
    if isinstance(config, BERTConfig):
        return bert_rules()
    return [Rule(r"^pool\b", "@text_projection"), *text_rules(prefix), Rule(r".*@", "")]


def bert_rules() -> list[Rule]:
    """Our names of LDM's text encoder to diffusers'."""
    return [
        Rule(r"^tokens", "embed_tokens"),
        Rule(r"^positions", "embed_positions"),
        Rule(r"^norm\b", "layer_norm"),
        Rule(r"^blocks", "layers"),
        Rule(r"\.norm1\b", ".self_attn_layer_norm"),
        Rule(r"\.norm2\b", ".final_layer_norm"),
        Rule(r"\.attn\.([qkv])\b", r".self_attn.\1_proj"),
        Rule(r"\.attn\.out\b", ".self_attn.out_proj"),
        Rule(r"^", "model."),
    ]
