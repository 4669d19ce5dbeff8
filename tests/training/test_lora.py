"""LoRAs that are trained: they begin as nothing, learn, are saved in two namings, and come off again."""

import pytest
import torch

import ldm
from ldm.errors import InputError
from ldm.training.lora import LoRA
from tests.reduced import make as reduced
from tests.tiny import error, make, same, unit_noise

QUIET = {"progress": False, "num_inference_steps": 2, "seed": 1, "output_type": "latent"}


def trained(pipe, steps=3, **options):
    """A LoRA after a few steps towards zero output."""
    lora = LoRA(pipe, 4, 8.0, **options)
    optimiser = torch.optim.SGD(lora.parameters(), lr=0.5)
    t = torch.tensor([500])
    context = pipe.condition(["a cat"]).context.detach()
    losses = []
    for _ in range(steps):
        loss = pipe.unet(unit_noise(0, 1, 4, 8, 8), t, context).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return lora


@pytest.mark.parametrize("targets", [r"attn\.(q|k|v|out)$", r".", r"conv1$|proj_in$|ff\.(up|down)$"])
def test_it_begins_as_nothing_learns_and_comes_off(targets):
    pipe = make()
    before, weights = (
        pipe("a cat", **QUIET).latents,
        {k: v.clone() for k, v in pipe.unet.state_dict().items()},
    )
    lora = LoRA(pipe, 4, targets=targets)
    assert torch.equal(pipe("a cat", **QUIET).latents, before)
    lora.remove()
    lora = trained(pipe, targets=targets)
    assert error(pipe("a cat", **QUIET).latents, before) > 1e-3
    assert all(not p.requires_grad for k, p in pipe.unet.named_parameters() if "original" in k)
    lora.remove()
    assert same(pipe.unet.state_dict(), weights) and torch.equal(pipe("a cat", **QUIET).latents, before)


@pytest.mark.parametrize("naming", ["peft", "kohya"])
@pytest.mark.parametrize("targets", [r"attn\.(q|k|v|out)$", r"conv1$|proj_in$|ff\.(up|down)$"])
def test_what_is_saved_is_loaded_as_the_same_change(tmp_path, naming, targets):
    pipe = make()
    lora = trained(pipe, targets=targets)
    expected = pipe("a cat", **QUIET).latents
    lora.save(tmp_path / "a.safetensors", naming)
    lora.remove()
    plain = pipe("a cat", **QUIET).latents
    pipe.load_lora(tmp_path / "a.safetensors")
    assert error(pipe("a cat", **QUIET).latents, expected) <= 1e-5 and error(plain, expected) > 1e-3


@pytest.mark.parametrize("naming", ["peft", "kohya"])
@pytest.mark.parametrize("networks", [("unet", "text_encoder")])
def test_diffusers_loads_what_is_saved(tmp_path, naming, networks):
    pytest.importorskip("peft")
    from tests.reference.test_family_pipelines import ours, peer_of, theirs

    pipe = reduced("sd1")
    ldm.save(pipe, tmp_path / "folder", layout="diffusers")
    lora = trained(pipe, networks=networks)
    generator = torch.Generator().manual_seed(0)
    for parameter in lora.parameters():  # the text encoder too
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    expected = ours(pipe)
    lora.save(tmp_path / "a.safetensors", naming)
    lora.remove()
    peer = peer_of(tmp_path / "folder")
    plain = theirs(peer, prompt="a café, 猫 😀 on “the” moon")
    peer.load_lora_weights(tmp_path, weight_name="a.safetensors")
    found = theirs(peer, prompt="a café, 猫 😀 on “the” moon")
    assert error(found, expected) <= 1e-4 and error(plain, expected) > 1e-2


def test_it_is_the_same_again_and_another_with_another_generator():
    pipe = make()
    draws = []
    for seed in (0, 0, 1):
        lora = LoRA(pipe, 2, generator=torch.Generator().manual_seed(seed))
        draws.append(next(lora.parameters()).detach().clone())
        lora.remove()
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank must be from 1"),
        ({"alpha": -1.0}, "alpha must be a number"),
        ({"targets": "nothing"}, "matches no"),
        ({"targets": "("}, "regular expression"),
        ({"networks": ("vae",)}, "networks has 'vae'"),
        ({"networks": ("text_encoder_2",)}, "networks has 'text_encoder_2'"),
        ({"networks": ("unet", "unet")}, "networks has 'unet' twice"),
    ],
)
def test_wrong_ways_are_refused_and_leave_nothing(options, words):
    pipe = make()
    before = set(pipe.unet.state_dict())
    with pytest.raises(InputError, match=words):
        LoRA(pipe, **options)
    assert set(pipe.unet.state_dict()) == before


def test_a_wrong_place_or_naming_is_refused(tmp_path):
    lora = LoRA(make(), 2)
    for path, naming in ((tmp_path / "a.bin", "peft"), (tmp_path / "a.safetensors", "a1111")):
        with pytest.raises(InputError):
            lora.save(path, naming)
    assert not list(tmp_path.iterdir())


def test_a_rank_that_a_matrix_has_not_leaves_the_scale():
    pipe = make()
    lora = LoRA(pipe, rank=4096, targets=r"(conv_in|conv_out)$")
    assert {place.change.scale for place in lora.places} == {1.0}
    assert all(len(place.change.down) < 4096 for place in lora.places)
    lora.remove()
    lora = LoRA(pipe, rank=4096, alpha=2048, targets=r"(conv_in|conv_out)$")
    assert {change.scale for change in lora.changes().values()} == {0.5}
    lora.remove()
