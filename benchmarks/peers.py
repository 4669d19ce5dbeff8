"""Networks of full width with random weights: diffusers', and ours on the same tensors.

Our tensors are views of diffusers', by the rule table that loads checkpoints: both compute the same function.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ldm.checkpoint.diffusers import unet_rules, vae_rules
from ldm.checkpoint.plan import networks, usual_tokenizer
from ldm.checkpoint.table import Rule, table
from ldm.conditioning import Conditioning, tell
from ldm.family import Family
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from ldm.vae import VAE

Network = TypeVar("Network", bound=nn.Module)


class Place(NamedTuple):
    """Where and in what networks are."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format


ON_GPU = Place("cuda", torch.bfloat16, torch.channels_last)


def diffusers_unet(family: Family, place: Place = Place()) -> Any:
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
    return filled(network, place)


def diffusers_vae(family: Family, place: Place = Place()) -> Any:
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
    return filled(network, place)


@torch.no_grad()
def filled(network: Network, place: Place) -> Network:
    """A network on the meta device, with random weights elsewhere."""
    network = nn.Module.to(network, place.dtype).to_empty(device=place.device).eval().requires_grad_(False)
    generator = torch.Generator(place.device).manual_seed(0)
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            fill(module, name, weight, generator)
    return nn.Module.to(network, memory_format=place.layout)


def fill(module: nn.Module, name: str, weight: Tensor, generator: torch.Generator) -> None:
    """Norms that do nothing, no biases, and weights of variance 1 / 3 inputs: activations stay moderate."""
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
        weight.fill_(1.0 if name == "weight" else 0.0)
    elif name == "bias":
        weight.zero_()
    else:
        bound = weight[0].numel() ** -0.5
        weight.uniform_(-bound, bound, generator=generator)


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


def sharing(network: Network, peer: nn.Module, rules: Sequence[Rule]) -> Network:
    """A network of ours on the meta device, on the tensors of a peer whose names the rules tell."""
    theirs = peer.state_dict()
    sources = table(network.state_dict(), rules)
    state = {ours: source.form.load(theirs[source.key]) for ours, source in sources.items()}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def pipeline(family: Family, unet: nn.Module, vae: nn.Module, place: Place) -> Pipeline:
    """A pipeline of these peers' tensors, with text encoders of random weights."""
    with torch.device("meta"):
        _, _, *texts = (build() for build in networks(family).values())
    encoders = [filled(text, place) for text in texts]
    tokenizers = [usual_tokenizer(text) for text in family.texts]
    return Pipeline(family, our_unet(family, unet), our_vae(family, vae), encoders, tokenizers)


def heard(family: Family, tokens: int, place: Place, seed: int) -> tuple[Conditioning, Any]:
    """What the UNet is told of one image, and what diffusers' is told besides the tokens."""
    device, dtype, _ = place
    generator, config = torch.Generator(device).manual_seed(seed), family.unet

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    context = noise(1, tokens, config.context_dim or 0)
    if config.vector_dim is None:
        return Conditioning(context), None
    pooled, numbers = noise(1, family.texts[-1].pooled), [1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]
    more = {"text_embeds": pooled, "time_ids": torch.tensor([numbers], device=device, dtype=dtype)}
    return Conditioning(context, tell(pooled, numbers, family)), more
