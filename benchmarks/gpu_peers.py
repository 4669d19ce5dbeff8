"""Networks of full width with random weights on a GPU: diffusers', and ours on the same tensors."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.unet import fill, sharing
from ldm.checkpoint.diffusers import unet_rules, vae_rules
from ldm.checkpoint.plan import networks, usual_tokenizer
from ldm.conditioning import Conditioning, tell
from ldm.family import Family
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from ldm.vae import VAE

Network = TypeVar("Network", bound=nn.Module)


def diffusers_unet(family: Family, device: str, dtype: torch.dtype) -> Any:
    """diffusers' UNet of a family."""
    from diffusers import UNet2DConditionModel

    config = family.unet
    attends = [depth > 0 for depth in config.depth]
    vector: dict[str, Any] = {} if config.vector_dim is None else {
        "addition_embed_type": "text_time", "addition_time_embed_dim": family.vector_part,
        "projection_class_embeddings_input_dim": config.vector_dim,
    }  # fmt: skip
    with torch.device("meta"):
        network: Any = UNet2DConditionModel(
            block_out_channels=config.channels, cross_attention_dim=config.context_dim,
            attention_head_dim=[config.heads_at(width) for width in config.channels],
            transformer_layers_per_block=[max(1, depth) for depth in config.depth],
            use_linear_projection=config.linear,
            down_block_types=["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in attends],
            up_block_types=["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(attends)],
            **vector,
        )  # fmt: skip
    return filled(network, device, dtype)


def diffusers_vae(family: Family, device: str, dtype: torch.dtype) -> Any:
    """diffusers' autoencoder of a family."""
    from diffusers import AutoencoderKL

    config = family.vae
    with torch.device("meta"):
        network: Any = AutoencoderKL(
            block_out_channels=config.channels, latent_channels=config.latent_channels,
            layers_per_block=config.res_blocks,
            down_block_types=["DownEncoderBlock2D"] * len(config.channels),
            up_block_types=["UpDecoderBlock2D"] * len(config.channels),
        )  # fmt: skip
    return filled(network, device, dtype)


@torch.no_grad()
def filled(network: Network, device: str, dtype: torch.dtype) -> Network:
    """A network on the meta device, with random weights on another, whose channels lie last."""
    network = nn.Module.to(network, dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            fill(module, name, weight, generator)
    return nn.Module.to(network, memory_format=torch.channels_last)


def our_unet(family: Family, peer: nn.Module) -> UNet:
    """Our UNet on the peer's own tensors."""
    with torch.device("meta"):
        network = UNet(family.unet)
    return sharing(network, peer, unet_rules(family.unet))


def our_vae(family: Family, peer: nn.Module) -> VAE:
    """Our autoencoder on the peer's own tensors."""
    with torch.device("meta"):
        network = VAE(family.vae)
    return sharing(network, peer, vae_rules())


def pipeline(family: Family, unet: nn.Module, vae: nn.Module, device: str, dtype: torch.dtype) -> Pipeline:
    """A pipeline of these peers' tensors, with text encoders of random weights."""
    with torch.device("meta"):
        _, _, *texts = (build() for build in networks(family).values())
    encoders = [filled(text, device, dtype) for text in texts]
    tokenizers = [usual_tokenizer(text) for text in family.texts]
    return Pipeline(family, our_unet(family, unet), our_vae(family, vae), encoders, tokenizers)


def heard(
    family: Family, tokens: int, device: str, dtype: torch.dtype, seed: int
) -> tuple[Conditioning, Any]:
    """What the UNet is told of one image, and what diffusers' is told besides the tokens."""
    generator, config = torch.Generator(device).manual_seed(seed), family.unet

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    context = noise(1, tokens, config.context_dim or 0)
    if config.vector_dim is None:
        return Conditioning(context), None
    pooled, numbers = noise(1, family.texts[-1].pooled), [1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]
    more = {"text_embeds": pooled, "time_ids": torch.tensor([numbers], device=device, dtype=dtype)}
    return Conditioning(context, tell(pooled, numbers, family)), more
