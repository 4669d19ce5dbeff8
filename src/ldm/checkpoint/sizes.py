"""Widths and depths of networks, read off the tensors of an official single file.

What names and shapes cannot tell, such as the number of heads, is taken from a preset.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ldm.checkpoint.evidence import Shapes, commonest, count, read_or, under, vote
from ldm.checkpoint.original import UNET, VAE
from ldm.clip.config import BERTConfig, ClassConfig, CLIPConfig
from ldm.family import BESIDE, Family
from ldm.unet.config import UNetConfig
from ldm.vae.config import VAEConfig

RES = r"(?:in_layers\.2|out_layers\.[03]|emb_layers\.1)\.(?:weight|bias)"


def family(shapes: Shapes, preset: Family, prefixes: Sequence[str]) -> Family:
    """A preset with the sizes of a file, as far as it has them; prefixes: of its text encoders' names."""
    vae = read_or(preset.vae, vae_config, under(shapes, VAE))
    c = vae.latent_channels
    # not read off the first and last layer, so that these are missed, or refused, by the size they would have
    unet = replace(preset.unet, in_channels=c + BESIDE[preset.beside](c), out_channels=c)
    texts = tuple(
        replace(text, config=read_or(text.config, READERS[type(text.config)], under(shapes, prefix)))
        for text, prefix in zip(preset.texts, prefixes, strict=True)
    )
    return replace(preset, vae=vae, unet=read_or(unet, unet_config, under(shapes, UNET)), texts=texts)


def unet_config(shapes: Shapes, preset: UNetConfig) -> UNetConfig:
    """The sizes of a UNet, names without prefix; what sizes cannot tell is the preset's."""
    levels: list[list[tuple[int, int]]] = [[]]  # width and attention of each block, by level
    blocks = [under(shapes, f"input_blocks.{n}.") for n in range(1, count(shapes, r"input_blocks\.(\d+)\."))]
    strided = any(key.startswith("0.op.") for block in blocks for key in block)
    for n, block in enumerate(blocks):
        if any(key.startswith("0.op.") for key in block):
            levels.append([])
        elif not strided and n % (preset.res_blocks + 1) == preset.res_blocks:
            levels.append([])  # a residual block that halves the size has the names of one that does not
        elif any(re.fullmatch(rf"0\.{RES}", key) for key in block):
            levels[-1].append((vote(block, rf"0\.{RES}"), attention_depth(block, "1")))
    told = vote(shapes, r"input_blocks\.1\.0\.emb_layers\.1\.(weight|bias)")
    hears = any(".attn2." in key for key in shapes)
    return replace(
        preset,
        channels=tuple(commonest([width for width, _ in level]) for level in levels),
        depth=tuple(commonest([depth for _, depth in level]) for level in levels),
        mid_depth=attention_depth(under(shapes, "middle_block."), "1"),
        res_blocks=commonest([len(level) for level in levels]),
        context_dim=vote(shapes, r".*\.attn2\.to_[kv]\.weight", axis=1) if hears else None,
        vector_dim=size(shapes, "label_emb.0.0.weight", axis=1) or preset.vector_dim,
        scale_shift=told == 2 * levels[0][0][0] if levels[0] else False,
        res_sampling=not strided and len(levels) > 1,
        linear=commonest(ranks) == 2 if (ranks := projection_ranks(shapes)) else preset.linear,
    )


def projection_ranks(shapes: Shapes) -> list[int]:
    """The number of axes of each projection around a transformer: 2 of a linear layer, 4 of a convolution."""
    return [len(shape) for key, shape in shapes.items() if re.search(r"\.1\.proj_(in|out)\.weight$", key)]


def size(shapes: Shapes, name: str, axis: int = 0) -> int | None:
    """The size along an axis of a tensor that not every network has."""
    return shapes[name][axis] if len(shapes.get(name, ())) > axis else None


def attention_depth(shapes: Shapes, place: str) -> int:
    """Transformer blocks of an attention, 1 for a plain one, 0 for none."""
    plain = f"{place}.qkv.weight" in shapes or f"{place}.qkv.bias" in shapes
    return 1 if plain else count(shapes, rf"{place}\.transformer_blocks\.(\d+)\.")


def vae_config(shapes: Shapes, preset: VAEConfig) -> VAEConfig:
    """The sizes of an autoencoder, names without prefix; what sizes cannot tell is the preset's."""
    levels = range(count(shapes, r"encoder\.down\.(\d+)\."))
    conv = r"(conv[12]|norm2)\.(weight|bias)"
    attends = tuple(any(key.startswith(f"encoder.down.{i}.attn.") for key in shapes) for i in levels)
    return replace(
        preset,
        channels=tuple(vote(shapes, rf"(en|de)coder\.(down|up)\.{i}\.block\.\d\.{conv}") for i in levels),
        res_blocks=commonest([count(shapes, rf"encoder\.down\.{i}\.block\.(\d+)\.") for i in levels]),
        latent_channels=vote(shapes, r"(post_quant_conv|decoder\.conv_in)\.weight", axis=1),
        codes=size(shapes, "quantize.embedding.weight"),
        attention=attends if any(attends) else (),
        mid_attention=any(key.startswith("encoder.mid.attn_1.") for key in shapes),
    )


def text_config(shapes: Shapes, preset: CLIPConfig) -> CLIPConfig:
    """The sizes of a CLIP or OpenCLIP text encoder, names without prefix; the rest is the preset's.

    CLIP's heads are 64 wide, where a reduced model has not kept their number.
    """
    width = vote(shapes, r".*(layer_norm[12]|ln_[12]|out_proj)\.(weight|bias)")
    return replace(
        preset,
        width=width,
        heads=preset.heads if width % preset.heads == 0 else max(1, width // 64),
        layers=count(shapes, r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\."),
        hidden=vote(shapes, r".*mlp\.(fc1|c_fc)\.(weight|bias)"),
        projection=width if preset.projection == preset.width else preset.projection,
    )


def class_config(shapes: Shapes, preset: ClassConfig) -> ClassConfig:
    """The same of an embedding of classes."""
    return replace(preset, width=vote(shapes, r"embedding\.weight", axis=1))


def bert_config(shapes: Shapes, preset: BERTConfig) -> BERTConfig:
    """The same of LDM's text encoder."""
    inner = vote(shapes, r".*\.to_[qkv]\.weight")
    return replace(
        preset,
        width=vote(shapes, r".*\.to_[qkv]\.weight", axis=1),
        layers=count(shapes, r"attn_layers\.layers\.(\d+)\.") // 2,
        head_dim=inner // preset.heads,
        vocab=vote(shapes, r"token_emb\.weight"),
        length=vote(shapes, r"pos_emb\.emb\.weight"),
    )


READERS: dict[type, Callable[[Shapes, Any], Any]] = {
    CLIPConfig: text_config,
    BERTConfig: bert_config,
    ClassConfig: class_config,
}
