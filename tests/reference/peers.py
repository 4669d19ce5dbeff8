"""The same networks from diffusers and transformers, with the same random weights."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.checkpoint import diffusers as names
from ldm.checkpoint.save import write_tokenizer
from ldm.checkpoint.table import table
from ldm.clip import CLIPConfig, Tokenizer
from ldm.unet import UNetConfig
from ldm.vae import VAEConfig
from tests.tiny import randomise

# Widths and depths of a small Stable Diffusion, three halvings in both networks as in the full one.
UNET = UNetConfig(channels=(32, 64, 64, 64), context_dim=96)
AUTOENCODER = VAEConfig(channels=(32, 32, 64, 64))
TEXT = CLIPConfig(width=96, layers=3, hidden=192)
FULL = (UNetConfig(), VAEConfig(), CLIPConfig())
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def peer_unet(config: UNetConfig) -> nn.Module:
    cross = [depth > 0 for depth in config.depth]
    more = {}
    if config.vector_dim:
        more = {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": config.vector_dim,
        }  # fmt: skip
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.channels,
        layers_per_block=config.res_blocks,
        cross_attention_dim=config.context_dim,
        attention_head_dim=[config.heads_at(width) for width in config.channels],
        transformer_layers_per_block=[max(1, depth) for depth in config.depth],
        use_linear_projection=config.heads is None,
        only_cross_attention=list(config.crossing) or False,
        num_class_embeds=config.labels,
        norm_num_groups=config.groups,
        down_block_types=["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in cross],
        up_block_types=["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(cross)],
        **more,
    ).eval()


def peer_vae(config: VAEConfig) -> nn.Module:
    return AutoencoderKL(
        block_out_channels=config.channels,
        down_block_types=["DownEncoderBlock2D"] * len(config.channels),
        up_block_types=["UpDecoderBlock2D"] * len(config.channels),
        layers_per_block=config.res_blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        sample_size=128,
    ).eval()


def peer_text(config: CLIPConfig) -> nn.Module:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_attention_heads=config.heads,
            num_hidden_layers=config.layers,
            vocab_size=config.vocab,
            hidden_act=config.activation,
            eos_token_id=2,  # as the published config has it
        )
    ).eval()


def give(ours: nn.Module, peer: nn.Module, rules: list) -> None:
    """The peer's weights to our network, by the table of the folder layout."""
    theirs = peer.state_dict()
    sources = table(ours.state_dict(), rules)
    ours.load_state_dict({key: source.form.load(theirs[source.key]) for key, source in sources.items()})


UNET_RULES, VAE_RULES, TEXT_RULES = names.unet_rules, names.vae_rules, names.text_rules


def peer_tokenizer(folder: Path) -> CLIPTokenizer:
    """transformers' slow tokenizer on our vocabulary files."""
    write_tokenizer(folder, Tokenizer.openai())
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def peer_pipeline(folder: Path, seed: int = 0, **scheduler: object) -> StableDiffusionPipeline:
    """A whole small Stable Diffusion of diffusers with random weights."""
    networks = (peer_unet(UNET), peer_vae(AUTOENCODER), peer_text(TEXT))
    unet, vae, text = (randomise(network, seed + i) for i, network in enumerate(networks))
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=peer_tokenizer(folder),
        unet=unet,
        scheduler=DDIMScheduler(
            **SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **scheduler
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(first: int, count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]
