"""Each network alone computes what the reference implementation computes, in float32, from equal weights."""

import pytest
import torch

from ldm.clip import TextEncoder
from ldm.unet import UNet
from ldm.vae import VAE
from tests.reference import peers
from tests.tiny import error, randomise, unit_noise

BOUND = 1e-5  # two orders of summation in float32, through some hundred layers
WIDTHS = [
    pytest.param((peers.UNET, peers.AUTOENCODER, peers.TEXT), id="small"),
    pytest.param(peers.FULL, id="full", marks=pytest.mark.slow),
]
SIZES = [(2, 16, 16), (1, 20, 12), (1, 9, 15)]  # images, and rows and columns that halve to odd numbers


@pytest.fixture(scope="module", params=WIDTHS)
def configs(request):
    return request.param


@pytest.fixture(scope="module")
def unets(configs):
    peer, ours = randomise(peers.peer_unet(configs[0])), UNet(configs[0]).eval()
    peers.give(ours, peer, peers.UNET_RULES(configs[0]))
    return ours, peer


@pytest.fixture(scope="module")
def vaes(configs):
    peer, ours = randomise(peers.peer_vae(configs[1])), VAE(configs[1]).eval()
    peers.give(ours, peer, peers.VAE_RULES())
    return ours, peer


@pytest.fixture(scope="module")
def texts(configs):
    peer, ours = randomise(peers.peer_text(configs[2])), TextEncoder(configs[2]).eval()
    peers.give(ours, peer, peers.TEXT_RULES("text_model."))
    return ours, peer


@torch.no_grad()
def unet_outputs(unets, b, h, w, width, t=(981.0, 1.0)):
    ours, peer = unets
    x, context = unit_noise(0, b, 4, h, w), unit_noise(1, b, 77, width)
    t = torch.tensor(t[:b])
    return ours(x, t, context), peer(x, t, encoder_hidden_states=context).sample


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_unet_is_diffusers_unet(unets, configs, size):
    found, expected = unet_outputs(unets, *size, configs[0].context_dim)
    assert error(found, expected) <= BOUND


def test_unet_at_a_level_between_whole_steps(unets, configs):
    found, expected = unet_outputs(unets, 1, 8, 8, configs[0].context_dim, t=(332.67,))
    assert error(found, expected) <= BOUND


@torch.no_grad()
def test_vae_decodes_as_diffusers(vaes):
    ours, peer = vaes
    z = unit_noise(0, 2, 4, 6, 10)
    assert error(ours.decode(z), peer.decode(z / 0.18215).sample) <= BOUND


@torch.no_grad()
def test_vae_encodes_to_diffusers_posterior(vaes):
    ours, peer = vaes
    images = unit_noise(0, 2, 3, 64, 40).clamp(-1, 1)
    posterior = peer.encode(images).latent_dist
    mean, logvar = ours.moments(images)
    assert error(mean, posterior.mean) <= BOUND
    assert error(logvar, posterior.logvar) <= BOUND
    assert error(ours.encode(images), posterior.mean * 0.18215) <= BOUND


@pytest.mark.parametrize("length", [77, 5, 1])
@torch.no_grad()
def test_text_encoder_is_transformers_clip(texts, length):
    ours, peer = texts
    ids = torch.randint(49406, (2, length), generator=torch.Generator().manual_seed(0))
    assert error(ours(ids), peer(ids).last_hidden_state) <= BOUND


@pytest.mark.parametrize("key", ["mid.res1.norm2.bias", "up.0.up.weight", "time.fc1.bias", "conv_in.weight"])
def test_one_moved_unet_weight_breaks_the_bound(unets, configs, key):
    weight = unets[0].state_dict()[key]
    kept = weight.clone()
    weight.flatten()[0] += 0.5
    found, expected = unet_outputs(unets, 1, 8, 8, configs[0].context_dim)
    weight.copy_(kept)
    assert error(found, expected) > BOUND


@torch.no_grad()
def test_one_moved_vae_weight_breaks_the_bound(vaes):
    ours, peer = vaes
    weight = ours.decoder.mid[1].attn.k.weight
    kept = weight.clone()
    weight[0] += 0.5
    z = unit_noise(0, 1, 4, 6, 10)
    found = ours.decode(z)
    weight.copy_(kept)
    assert error(found, peer.decode(z / 0.18215).sample) > BOUND


@torch.no_grad()
def test_one_other_token_breaks_the_bound(texts):
    ours, peer = texts
    ids = torch.full((1, 20), 320)
    other = ids.clone()
    other[0, 5] = 321
    assert error(ours(other), peer(ids).last_hidden_state) > 100 * BOUND
