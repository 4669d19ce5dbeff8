"""Networks that begin anew: silent UNets, and nothing else touched."""

from dataclasses import replace

import pytest
import torch

from ldm.clip import ClassConfig
from ldm.errors import InputError
from ldm.families import FAMILIES
from ldm.family import Text
from ldm.training.diffusion import Diffusion
from ldm.training.fresh import DEVIATION, begin_anew, from_nothing, like
from ldm.training.settings import DiffusionSettings
from tests import tiny
from tests.reduced import REDUCED
from tests.tiny import same, unit_noise
from tests.training.runs import SMALL
from tests.training.test_diffusion import batch_of

# SMALL with the vocabulary that a model from nothing has, OpenAI's
OFFICIAL = replace(SMALL, texts=(Text(replace(SMALL.texts[0].config, vocab=49408, length=77)),))
FEW = ("sd2-v", "sdxl", "ldm-cin256")
TRAINABLE = [name for name, family in REDUCED.items() if not family.beside and not family.unet.labels]


def states(pipe):
    return {name: {k: v.clone() for k, v in each.state_dict().items()}
            for name, each in pipe.named_networks().items()}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow)
                                  for name in TRAINABLE])  # fmt: skip
def test_a_model_from_nothing_says_nothing_yet_and_learns_everything(name):
    """Its UNet says 0, so that the loss is |target|²; every network is frozen and reproducible."""
    before = torch.get_rng_state()
    pipe = from_nothing(REDUCED[name], seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.requires_grad for network in pipe.networks() for p in network.parameters())
    assert not any(network.training for network in pipe.networks())
    again, other = states(from_nothing(REDUCED[name], seed=3)), states(from_nothing(REDUCED[name], seed=4))
    for key, state in states(pipe).items():
        assert same(state, again[key]) and not same(state, other[key])
        assert all(torch.isfinite(x).all() for x in state.values())
    prompts = [3, 5] if isinstance(pipe.family.texts and pipe.family.texts[0].config, ClassConfig) else None
    batch = batch_of(pipe.family, 2, prompts)
    pipe.unet.requires_grad_(True)
    diffusion = Diffusion(pipe, DiffusionSettings(drop=0.0))
    losses = diffusion(batch, range(2))
    losses.mean().backward()
    assert pipe.unet.conv_out.weight.grad.any()
    pipe.unet.forward = lambda x, t, **more: 0 * x
    assert torch.equal(losses, diffusion(batch, range(2))) and losses.min() > 0
    assert len(pipe.tokenizers) == len(
        [t for t in pipe.family.texts if not isinstance(t.config, ClassConfig)]
    )


def test_a_fresh_unet_is_0_and_its_blocks_the_identity():
    pipe = from_nothing(OFFICIAL)
    x, t = unit_noise(0, 2, 4, 8, 8), torch.tensor([10, 900])
    context = unit_noise(1, 2, 77, 16)
    assert not pipe.unet(x, t, context).any()
    assert tiny.make(SMALL).unet(x, t, context).any()
    residual = [m for m in pipe.unet.modules() if type(m).__name__ == "ResBlock" and m.conv1.in_channels
                == m.conv2.out_channels]  # fmt: skip
    assert residual and all(not block.conv2.weight.any() for block in residual)


def test_texts_begin_small():
    """Embeddings of deviation 0.02 (Radford et al. 2018), within 5 % of 49408 · 16 draws."""
    encoder = from_nothing(OFFICIAL).text_encoders[0]
    assert float(encoder.tokens.weight.std()) == pytest.approx(DEVIATION, rel=0.05)
    assert float(encoder.positions.weight.std()) == pytest.approx(DEVIATION, rel=0.1)


@pytest.mark.parametrize("names", [("unet",), ("vae",), ("text_encoder",), ("unet", "text_encoder"), ()])
def test_only_the_named_networks_begin_anew(names):
    pipe = tiny.make(SMALL)
    before, marked = states(pipe), torch.get_rng_state()
    begin_anew(pipe, names, seed=7)
    assert torch.equal(torch.get_rng_state(), marked)
    for name, state in states(pipe).items():
        assert same(state, before[name]) == (name not in names)
    others = tiny.make(SMALL, seed=9)
    begin_anew(others, names, seed=7)
    assert all(same(states(pipe)[name], states(others)[name]) for name in names)  # of the old nothing is left


def test_a_network_that_is_not_there_is_named():
    pipe = tiny.make(SMALL)
    before = states(pipe)
    with pytest.raises(InputError, match=r"fresh has 'text_encodr'.*did you mean 'text_encoder'"):
        begin_anew(pipe, ("text_encodr",))
    assert all(same(state, before[name]) for name, state in states(pipe).items())


def test_a_vocabulary_that_is_nobody_s_is_refused():
    with pytest.raises(InputError, match=r"shapes's text_encoder knows 771 tokens.*begin from a model"):
        from_nothing(FAMILIES["shapes"])


def test_a_likeness_has_weights_of_its_own():
    pipe = tiny.make(SMALL)
    other = like(pipe)
    assert other.family == pipe.family and other.tokenizers == pipe.tokenizers
    pointers = {p.data_ptr() for network in pipe.networks() for p in network.parameters()}
    assert not pointers & {p.data_ptr() for network in other.networks() for p in network.parameters()}
    for mine, theirs in zip(pipe.networks(), other.networks(), strict=True):
        theirs.load_state_dict(mine.state_dict())
    assert same(other.unet.state_dict(), pipe.unet.state_dict())
