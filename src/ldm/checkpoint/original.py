"""The single-file layout of the CompVis and Stability code: rules of names, and sizes read off a file."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count as counter

from ldm.checkpoint.table import CONV, PLAIN, Form, Rule, fused
from ldm.clip.config import BERTConfig, ClassConfig, CLIPConfig
from ldm.family import Family
from ldm.unet.config import UNetConfig
from ldm.vae.config import VAEConfig

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OLD_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."
OPENCLIP, SGM = "cond_stage_model.model.", "conditioner.embedders.0.model."
SGM_CLIP, SGM_SECOND = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
CLASSES = "cond_stage_model."

PREFIXES = {  # of each family's text encoders in the official files; of all others CLIP
    **dict.fromkeys(("sd2", "sd2-v", "sd2-inpaint", "sd2-depth", "sd-x4-upscaler"), (OPENCLIP,)),
    **dict.fromkeys(("sdxl", "sdxl-inpaint", "sdxl-turbo"), (SGM_CLIP, SGM_SECOND)),
    **dict.fromkeys(("sd-turbo", "sdxl-refiner"), (SGM,)),
    **dict.fromkeys(("ldm-cin256", "ldm-cin256-vq-f8"), (CLASSES,)),
    "ldm-text2img": (OLD_CLIP,),
}
OTHERS = {CLIP: OLD_CLIP, OPENCLIP: SGM, SGM: OPENCLIP}  # the same network elsewhere, in some files

MOST_LAYERS = 64  # of LDM's text encoder

# Tensors a file may carry and no network uses.
IGNORED = (
    r"(first_stage_model\.)?model_ema\..*",  # moving averages of a network's weights
    r"first_stage_model\.loss\..*",  # what the autoencoder was trained with
    r"(low_scale_model\.)?(alphas_cumprod|alphas_cumprod_prev|betas|log_one_minus_alphas_cumprod"
    r"|posterior_log_variance_clipped|posterior_mean_coef[12]|posterior_variance|sqrt_alphas_cumprod"
    r"|sqrt_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|logvar"
    r"|lvlb_weights|ddim_\w+|denoiser\.sigmas)",  # the schedule, as tables
    r"scale_factor",  # of latents; read where a family has it from the file
    r"(cond_stage_model|conditioner\.embedders\.\d)\.((transformer|model)\.)?logit_scale",
    r"(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.text_projection\.weight"
    r"|model\.text_projection)",  # of the whole CLIP
    r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(text_model\.)?embeddings\.position_ids",
    r"cond_stage_model\.transformer\.to_logits\.(weight|bias)",  # of BERT, which once guessed words
    r"cond_stage_model\.(encoder|decoder|quantize|quant_conv|post_quant_conv|loss)\..*",  # ldm-inpaint's twin
    r"depth_model\..*",  # what gave the depth in training
)


def text_prefixes(names: Iterable[str], family: Family) -> tuple[str, ...]:
    """The prefixes under which a file has a family's text encoders."""
    names = list(names)

    def found(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    usual = prefixes(family)
    return tuple(OTHERS[p] if not found(p) and p in OTHERS and found(OTHERS[p]) else p for p in usual)


def prefixes(family: Family) -> tuple[str, ...]:
    """The usual ones."""
    return PREFIXES.get(family.name, (CLIP,))[: len(family.texts)]


def rules(family: Family, prefixes: Sequence[str]) -> dict[str, list[Rule]]:
    """The rules of each network of a family, by its name."""
    texts = zip(family.texts, prefixes, strict=True)
    return {
        "unet": unet_rules(family.unet),
        "vae": vae_rules(family.vae),
        **{text.name: prompt_rules(text.config, prefix) for text, prefix in texts},
    }


def prompt_rules(config: CLIPConfig | BERTConfig | ClassConfig, prefix: str) -> list[Rule]:
    """Our names of what hears the prompt to this layout's."""
    if isinstance(config, ClassConfig):
        return [Rule(r"^classes", f"{prefix}embedding")]
    if isinstance(config, BERTConfig):
        return bert_rules(prefix)
    return openclip_rules(prefix) if prefix.endswith(".model.") else text_rules(prefix)


def unet_rules(config: UNetConfig, prefix: str = UNET) -> list[Rule]:
    """Our names of a UNet to this layout's."""
    return [
        *(Rule(rf"^{ours}\b", theirs) for ours, theirs in flat_blocks(config)),
        Rule(r"^time\.fc1", "time_embed.0"),
        Rule(r"^time\.fc2", "time_embed.2"),
        Rule(r"^vector\.fc1", "label_emb.0.0"),
        Rule(r"^vector\.fc2", "label_emb.0.2"),
        Rule(r"^label\b", "label_emb"),
        Rule(r"^norm_out", "out.0"),
        Rule(r"^conv_out", "out.2"),
        Rule(r"\.norm1\b", ".in_layers.0"),
        Rule(r"\.conv1\b", ".in_layers.2"),
        Rule(r"\.time\b", ".emb_layers.1"),
        Rule(r"\.norm2\b", ".out_layers.0"),
        Rule(r"\.conv2\b", ".out_layers.3"),
        Rule(r"\.skip\b", ".skip_connection"),
        *transformer_rules(config.linear),
        *fused(r"(block\S*\.\d+)\.attn\.{}\b", r"\1.qkv", axes=1, heads=config.heads_at),
        Rule(r"(block\S*\.\d+)\.attn\.out\b", r"\1.proj_out", Form(axes=1)),
        Rule(r"^", prefix),
    ]


def transformer_rules(linear: bool) -> list[Rule]:
    """The names inside a spatial transformer, which both layouts share; linear: see UNetConfig."""
    return [
        Rule(r"\.blocks\.", ".transformer_blocks."),
        Rule(r"\.norm_self\b", ".norm1"),
        Rule(r"\.norm_cross\b", ".norm2"),
        Rule(r"\.norm_ff\b", ".norm3"),
        Rule(r"\.proj_(in|out)\.weight", r".proj_\1.weight", PLAIN if linear else CONV),
        Rule(r"\.self_attn\b", ".attn1"),
        Rule(r"\.cross_attn\b", ".attn2"),
        Rule(r"\.(attn\d)\.([qkv])\b", r".\1.to_\2"),
        Rule(r"\.(attn\d)\.out\b", r".\1.to_out.0"),
        Rule(r"\.ff\.up\b", ".ff.net.0.proj"),
        Rule(r"\.ff\.down\b", ".ff.net.2"),
    ]


def flat_blocks(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """We number blocks by level; this layout numbers them flat, in the order in which they run."""
    last = len(config.channels) - 1
    op, conv = ("", "") if config.res_sampling else (".op", ".conv")
    yield r"conv_in", "input_blocks.0.0"
    n = counter(1)
    for i in range(last + 1):
        for j, k in zip(range(config.res_blocks), n, strict=False):
            yield rf"down\.{i}\.res\.{j}", f"input_blocks.{k}.0"
            yield rf"down\.{i}\.attn\.{j}", f"input_blocks.{k}.1"
        if i < last:
            yield rf"down\.{i}\.down", f"input_blocks.{next(n)}.0{op}"
    yield r"mid\.res1", "middle_block.0"
    yield r"mid\.attn", "middle_block.1"
    yield r"mid\.res2", "middle_block.2"
    n = counter()
    for i, depth in enumerate(reversed(config.depth)):
        for j, k in zip(range(config.res_blocks + 1), n, strict=False):
            yield rf"up\.{i}\.res\.{j}", f"output_blocks.{k}.0"
            yield rf"up\.{i}\.attn\.{j}", f"output_blocks.{k}.1"
        yield rf"up\.{i}\.up", f"output_blocks.{k}.{2 if depth else 1}{conv}"


def vae_rules(config: VAEConfig, prefix: str = VAE) -> list[Rule]:
    """Our names of an autoencoder to this layout's, which counts the decoder's levels from the output."""
    last = len(config.channels) - 1
    return [
        Rule(r"^to_moments", "quant_conv"),
        Rule(r"^from_latent", "post_quant_conv"),
        Rule(r"^codebook\.codes", "quantize.embedding"),
        *(Rule(rf"^decoder\.up\.{i}\b", f"decoder.up.@{last - i}") for i in range(last + 1)),
        Rule(r"@", ""),
        Rule(r"\.res\.(\d)", r".block.\1"),
        Rule(r"(\.up\.\d)\.up\b", r"\1.upsample.conv"),
        Rule(r"(\.down\.\d)\.down\b", r"\1.downsample.conv"),
        Rule(r"\.mid\.0", ".mid.block_1"),
        Rule(r"\.mid\.2", ".mid.block_2"),
        Rule(r"\.mid\.1\b", ".mid.attn_1"),
        Rule(r"\.(attn_1|attn\.\d)\.attn\.([qkv])\.weight", r".\1.\2.weight", CONV),
        Rule(r"\.(attn_1|attn\.\d)\.attn\.out\.weight", r".\1.proj_out.weight", CONV),
        Rule(r"\.(attn_1|attn\.\d)\.attn\.([qkv])\b", r".\1.\2"),
        Rule(r"\.(attn_1|attn\.\d)\.attn\.out\b", r".\1.proj_out"),
        Rule(r"\.skip\b", ".nin_shortcut"),
        Rule(r"^", prefix),
    ]


def text_rules(prefix: str = CLIP) -> list[Rule]:
    """Our names of a CLIP text encoder to those of transformers, which both layouts use."""
    return [
        Rule(r"^tokens", "embeddings.token_embedding"),
        Rule(r"^positions", "embeddings.position_embedding"),
        Rule(r"^norm\b", "final_layer_norm"),
        Rule(r"^blocks", "encoder.layers"),
        Rule(r"\.norm([12])\b", r".layer_norm\1"),
        Rule(r"\.attn\.([qkv])\b", r".self_attn.\1_proj"),
        Rule(r"\.attn\.out\b", ".self_attn.out_proj"),
        Rule(r"\.fc([12])\b", r".mlp.fc\1"),
        Rule(r"^", prefix),
    ]


def openclip_rules(prefix: str) -> list[Rule]:
    """Our names of a CLIP text encoder to OpenCLIP's, whose projection is x @ P where ours is x @ W.T."""
    return [
        Rule(r"^tokens", "token_embedding"),
        Rule(r"^positions\.weight", "positional_embedding"),
        Rule(r"^norm\b", "ln_final"),
        Rule(r"^pool\.weight", "text_projection", Form(turned=True)),
        Rule(r"^blocks", "transformer.resblocks"),
        Rule(r"\.norm([12])\b", r".ln_\1"),
        *fused(r"\.attn\.{}\.(weight|bias)", r".attn.in_proj_\1"),
        Rule(r"\.attn\.out\b", ".attn.out_proj"),
        Rule(r"\.fc1\b", ".mlp.c_fc"),
        Rule(r"\.fc2\b", ".mlp.c_proj"),
        Rule(r"^", prefix),
    ]


def bert_rules(prefix: str = OLD_CLIP) -> list[Rule]:
    """Our names of LDM's text encoder to this layout's, which numbers both halves of a block as layers."""
    return [
        Rule(r"^tokens", "token_emb"),
        Rule(r"^positions", "pos_emb.emb"),
        Rule(r"^norm\b", "norm"),
        Rule(r"^blocks\.(\d+)\.(norm1|attn)\b", r"attn_layers.layers.\1+0.\2"),
        Rule(r"^blocks\.(\d+)\.(norm2|fc\d)\b", r"attn_layers.layers.\1+1.\2"),
        *(Rule(rf"\.{i // 2}\+{i % 2}\.", f".{i}.") for i in range(2 * MOST_LAYERS)),
        Rule(r"\.norm[12]\b", ".0"),
        Rule(r"\.attn\.([qkv])\b", r".1.to_\1"),
        Rule(r"\.attn\.out\b", ".1.to_out"),
        Rule(r"\.fc1\b", ".1.net.0.0"),
        Rule(r"\.fc2\b", ".1.net.2"),
        Rule(r"^", prefix),
    ]
