"""Activations that are computed again: less is kept, and every bit of the gradient is the same."""

import pytest
import torch

from ldm.training.diffusion import Diffusion
from ldm.training.recompute import BLOCKS, blocks_in, recomputed
from ldm.training.settings import DiffusionSettings
from tests import tiny
from tests.reduced import make as reduced
from tests.tiny import same
from tests.training.runs import SMALL, frozen, gradients
from tests.training.test_diffusion import batch_of

NAMES = ("tiny", "small", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sdxl", "ldm-churches256")))


def model(name):
    """Its UNet and text encoders are trained."""
    made = {"tiny": tiny.make, "small": lambda: tiny.make(SMALL)}
    pipe = frozen(made[name]() if name in made else reduced(name))
    for network in (pipe.unet, *pipe.text_encoders):
        network.requires_grad_(True)
    return pipe


def kept(pipe, batch, rows):
    """Bytes that a forward pass keeps beside the weights, what blocks are given among them; its loss."""
    weights = {p.data_ptr() for network in pipe.networks() for p in network.parameters()}
    found = {}

    def pack(x):
        if x.data_ptr() not in weights:
            found[x.data_ptr(), x.shape] = x.nbytes
        return x

    def given(module, args):
        for x in args:
            if x is not None:
                pack(x)

    blocks = [block for network in (pipe.unet, *pipe.text_encoders) for block in blocks_in(network)]
    handles = [block.register_forward_pre_hook(given) for block in blocks]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = Diffusion(pipe, DiffusionSettings(drop=0.0))(batch, rows)
    for handle in handles:
        handle.remove()
    return sum(found.values()), losses


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_same_bit_for_bit_and_less_is_kept(name):
    found = []
    for again in (False, True):
        pipe = model(name)
        for network in (pipe.unet, *pipe.text_encoders) if again else ():
            recomputed(network)
        size, losses = kept(pipe, batch_of(pipe.family, 2), range(2))
        losses.mean().backward()
        found.append((size, losses.detach(), gradients(pipe.unet), gradients(pipe.text_encoders[0])
                      if pipe.text_encoders else {}))  # fmt: skip
    (size, loss, unet, text), (less, *others) = found
    assert torch.equal(loss, others[0]) and same(unet, others[1]) and same(text, others[2])
    assert unet and (text or not pipe.text_encoders)
    assert less < 0.5 * size, (less, size)


@pytest.mark.parametrize("name", ["tiny", "sdxl", pytest.param("ldm-churches256", marks=pytest.mark.slow)])
def test_blocks_are_all_there_are_and_in_none_another(name):
    pipe = model(name)
    for network in (pipe.unet, *pipe.text_encoders):
        blocks = blocks_in(network)
        inside = {id(part) for block in blocks for part in block.modules() if part is not block}
        assert blocks and not inside & set(map(id, blocks))
        assert {id(part) for part in network.modules() if isinstance(part, BLOCKS)} == set(map(id, blocks))
        share = sum(p.numel() for block in blocks for p in block.parameters())
        total = sum(p.numel() for key, p in network.named_parameters() if "tokens" not in key)
        assert share > 0.5 * total


def test_without_a_gradient_it_draws_as_before():
    """A sheet is drawn while a model is trained."""
    pictures = []
    for again in (False, True):
        pipe = model("small")
        if again:
            recomputed(pipe.unet)
        pictures.append(pipe("a dog", seed=1, progress=False, output_type="latent").latents)
    assert torch.equal(*pictures)
