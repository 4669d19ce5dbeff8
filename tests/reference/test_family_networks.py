"""The networks of every family against diffusers and transformers, small, in float32, from equal weights."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm.checkpoint.table import Rule
from ldm.clip import BERT, BERTConfig, CLIPConfig, TextEncoder
from ldm.errors import InputError
from ldm.unet import UNet, UNetConfig
from ldm.vae import VAE, VAEConfig
from tests.reference.peers import TEXT_RULES, UNET_RULES, VAE_RULES, give, peer_unet
from tests.tiny import error, randomise, unit_noise

BOUND = 1e-5  # two orders of summation in float32, through some hundred layers

SD2 = UNetConfig(channels=(32, 64, 64), depth=(1, 1, 0), context_dim=96, heads=None, head_dim=16)
SDXL = UNetConfig(
    channels=(32, 64, 64), depth=(0, 1, 2), mid_depth=2, context_dim=96, heads=None, head_dim=16,
    vector_dim=64 + 6 * 8,
)  # fmt: skip
X4 = UNetConfig(
    in_channels=7, channels=(32, 64, 64), depth=(0, 1, 1), context_dim=96, labels=1000,
    crossing=(False, True, False),
)  # fmt: skip


@pytest.mark.parametrize("config", [SD2, SDXL, X4], ids=["sd2", "sdxl", "x4"])
@torch.no_grad()
def test_cross_attending_unets(config: UNetConfig):
    peer, ours = randomise(peer_unet(config)), UNet(config).eval()
    give(ours, peer, UNET_RULES(config))
    x, t = unit_noise(0, 2, config.in_channels, 16, 12), torch.tensor([981.0, 20.0])
    context, pooled = unit_noise(1, 2, 77, 96), unit_noise(2, 2, 64)
    sizes = torch.tensor([[64.0, 48, 0, 3, 64, 48], [32, 32, 1, 0, 64, 64]])
    label = torch.tensor([20, 350]) if config.labels else None
    vector = None
    more: dict = {"class_labels": label}
    if config.vector_dim:
        from ldm.unet.embeddings import sinusoid

        vector = torch.cat([pooled, sinusoid(sizes.flatten(), 8).reshape(2, -1)], dim=1)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
    expected = peer(x, t, encoder_hidden_states=context, **more).sample
    found = ours(x, t, context, vector, label)
    assert error(found, expected) <= BOUND
    # each input is heard
    assert error(ours(x, t, context.flip(0), vector, label), expected) > 100 * BOUND
    if vector is not None:
        assert error(ours(x, t, context, vector.flip(0)), expected) > 100 * BOUND
    if label is not None:
        assert error(ours(x, t, context, label=label.flip(0)), expected) > 100 * BOUND


@pytest.mark.parametrize(("config", "name"), [(SDXL, "vector"), (X4, "label"), (SD2, "context")])
def test_an_input_that_is_missing_is_named(config: UNetConfig, name: str):
    x, t, context = torch.zeros(1, config.in_channels, 8, 8), torch.zeros(1), torch.zeros(1, 7, 96)
    with pytest.raises(InputError, match=name):
        UNet(config)(x, t, None if name == "context" else context)


UNCONDITIONAL = UNetConfig(
    in_channels=3, out_channels=3, channels=(32, 64, 64), depth=(0, 1, 1), context_dim=None, heads=None,
    head_dim=16,
)  # fmt: skip
CHURCHES = UNetConfig(
    channels=(32, 64), depth=(1, 1), context_dim=None, heads=4, scale_shift=True, res_sampling=True,
)  # fmt: skip


@pytest.mark.parametrize("config", [UNCONDITIONAL, CHURCHES], ids=["celeba", "churches"])
@torch.no_grad()
def test_unconditional_unets(config: UNetConfig):
    attends = [depth > 0 for depth in config.depth]
    sampling = "resnet" if config.res_sampling else "conv"
    peer = UNet2DModel(
        sample_size=16, in_channels=config.in_channels, out_channels=config.out_channels,
        block_out_channels=config.channels, layers_per_block=config.res_blocks, norm_eps=1e-5,
        flip_sin_to_cos=True, freq_shift=0, downsample_padding=1,
        attention_head_dim=config.head_dim or config.channels[-1] // 4, norm_num_groups=config.groups,
        down_block_types=["AttnDownBlock2D" if x else "DownBlock2D" for x in attends],
        up_block_types=["AttnUpBlock2D" if x else "UpBlock2D" for x in reversed(attends)],
        downsample_type=sampling, upsample_type=sampling,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default", attn_norm_num_groups=32,
    ).eval()  # fmt: skip
    randomise(peer)
    if config.heads:  # diffusers knows a width of heads, the churches' model a number of them
        for module in peer.modules():
            if hasattr(module, "heads"):
                module.heads = config.heads
    ours = UNet(config).eval()
    give(ours, peer, UNET_RULES(config))
    peer, ours = peer.double(), ours.double()  # in float32 such a network's rounding is now and then 2e-5
    x, t = unit_noise(0, 2, config.in_channels, 16, 16).double(), torch.tensor([981.0, 20.0])
    expected = peer(x, t).sample
    assert error(ours(x, t), expected) <= 1e-6 * BOUND
    assert error(ours(x, t.flip(0)), expected) > 100 * BOUND


@torch.no_grad()
def test_vector_quantised_autoencoder():
    config = VAEConfig(channels=(32, 64, 64), latent_channels=3, codes=50, scale=1.0)
    peer = VQModel(
        block_out_channels=config.channels, layers_per_block=config.res_blocks, latent_channels=3,
        num_vq_embeddings=50, norm_num_groups=32, sample_size=32, scaling_factor=1.0,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    ).eval()  # fmt: skip
    randomise(peer)
    ours = VAE(config).eval()
    give(ours, peer, VAE_RULES())
    images, z = unit_noise(0, 2, 3, 32, 24).clamp(-1, 1), unit_noise(1, 2, 3, 8, 6)
    assert error(ours.encode(images), peer.encode(images).latents) <= BOUND
    assert error(ours.decode(z), peer.decode(z).sample) <= BOUND
    codes = ours.codebook(z)
    assert torch.equal(ours.codebook(codes), codes)  # a code is nearest to itself
    assert error(codes, z) > 100 * BOUND


@torch.no_grad()
def test_attention_at_a_level_follows_every_residual_block():
    """Of the VQ-f8 of the class-conditional model; diffusers' decoder blocks with attention are the same."""
    config = VAEConfig(channels=(32, 64), attention=(False, True))
    peer = AutoencoderKL(
        block_out_channels=config.channels, layers_per_block=2, norm_num_groups=32, latent_channels=4,
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    ).eval()  # fmt: skip
    randomise(peer)
    for module in peer.modules():
        if hasattr(module, "heads"):
            module.heads = 1
    ours = VAE(config).eval()
    rules = [
        Rule(r"(down|up)\.(\d)\.attn\.(\d)\.norm", r"\1_blocks.\2.attentions.\3.group_norm"),
        Rule(r"(down|up)\.(\d)\.attn\.(\d)\.attn\.([qkv])\b", r"\1_blocks.\2.attentions.\3.to_\4"),
        Rule(r"(down|up)\.(\d)\.attn\.(\d)\.attn\.out", r"\1_blocks.\2.attentions.\3.to_out.0"),
        *VAE_RULES(),
    ]
    give(ours, peer, rules)
    images, z = unit_noise(0, 1, 3, 16, 16).clamp(-1, 1), unit_noise(1, 1, 4, 8, 8)
    assert error(ours.encode(images), peer.encode(images).latent_dist.mean * config.scale) <= BOUND
    assert error(ours.decode(z), peer.decode(z / config.scale).sample) <= BOUND


def clip(config: CLIPConfig, kind: type) -> nn.Module:
    return kind(
        CLIPTextConfig(
            hidden_size=config.width, intermediate_size=config.hidden, num_attention_heads=config.heads,
            num_hidden_layers=config.layers, vocab_size=config.vocab, hidden_act=config.activation,
            projection_dim=config.projection or config.width, eos_token_id=2,
        )
    ).eval()  # fmt: skip


def some_ids(vocab: int) -> torch.Tensor:
    ids = torch.randint(vocab - 2, (2, 77), generator=torch.Generator().manual_seed(0))
    ids[0, 9:], ids[1, 30:] = 0, 0
    ids[0, 9] = ids[1, 30] = vocab - 1  # the end of the text
    return ids


@torch.no_grad()
def test_openclip_with_pooled_text():
    config = CLIPConfig(
        width=64, layers=4, heads=4, hidden=128, vocab=500, activation="gelu", skip=1, final_norm=False,
        projection=48,
    )  # fmt: skip
    peer, ours = randomise(clip(config, CLIPTextModelWithProjection)), TextEncoder(config).eval()
    give(ours, peer, [Rule(r"^pool\.", "@text_projection."), *TEXT_RULES("text_model."),
                      Rule(r"^text_model\.@", "")])  # fmt: skip
    ids = some_ids(500)
    out = peer(ids, output_hidden_states=True)
    hidden, pooled = ours.pooled(ids)
    assert error(hidden, out.hidden_states[-2]) <= BOUND
    assert error(pooled, out.text_embeds) <= BOUND
    assert torch.equal(ours(ids), hidden)
    assert error(pooled, out.text_embeds.flip(0)) > 100 * BOUND


@torch.no_grad()
def test_hidden_states_before_the_last_layer_and_normed():
    """SD 2: the file has one layer more than are used; the final norm comes all the same."""
    config = CLIPConfig(width=64, layers=4, heads=4, hidden=128, vocab=500, activation="gelu", skip=1)
    peer, ours = randomise(clip(config, CLIPTextModel)), TextEncoder(config).eval()
    give(ours, peer, TEXT_RULES("text_model."))
    ids = some_ids(500)
    out = peer(ids, output_hidden_states=True)
    expected = peer.text_model.final_layer_norm(out.hidden_states[-2])
    assert error(ours(ids), expected) <= BOUND
    assert error(out.last_hidden_state, expected) > 100 * BOUND


@torch.no_grad()
def test_bert_of_ldm():
    config = BERTConfig(width=64, layers=3, heads=4, head_dim=8, vocab=500)
    peer = LDMBertModel(
        LDMBertConfig(
            vocab_size=500, d_model=64, encoder_layers=3, encoder_ffn_dim=256, encoder_attention_heads=4,
            head_dim=8, max_position_embeddings=77, activation_function="gelu",
        )
    ).eval()  # fmt: skip
    randomise(peer)
    ours = BERT(config).eval()
    give(ours, peer, [
        Rule(r"^tokens", "model.embed_tokens"),
        Rule(r"^positions", "model.embed_positions"),
        Rule(r"^norm\b", "model.layer_norm"),
        Rule(r"^blocks", "model.layers"),
        Rule(r"\.norm1\b", ".self_attn_layer_norm"),
        Rule(r"\.norm2\b", ".final_layer_norm"),
        Rule(r"\.attn\.([qkv])\b", r".self_attn.\1_proj"),
        Rule(r"\.attn\.out\b", ".self_attn.out_proj"),
    ])  # fmt: skip
    ids = some_ids(500)
    assert error(ours(ids), peer(ids)[0]) <= BOUND
    assert error(ours(ids.flip(0)), peer(ids)[0]) > 100 * BOUND
