"""Textual inversion that is trained: a new token learns, nothing else moves, and it is saved for others."""

from functools import cache

import pytest
import torch
from torch import nn

import ldm
from ldm.errors import CheckpointError, InputError
from ldm.training.ema import trained
from ldm.training.inversion import TextualInversion
from ldm.training.lora import LoRA
from tests.reduced import make as reduced
from tests.test_inversions import heard, states, unchanged
from tests.tiny import BARE, error, make, read_all, unit_noise


def context(pipe, prompt: str) -> torch.Tensor:
    return pipe.condition([prompt]).context


def grown(inversion: TextualInversion, seed: int = 0) -> TextualInversion:
    """With other vectors, as if it had been trained."""
    for i, own in enumerate(inversion.parameters()):
        own.data = own.data + 0.5 * own.data.std() * unit_noise(seed + i, *own.shape)
    return inversion


@cache
def model(name: str):
    """A reduced family with the official vocabulary; each test leaves it as it was."""
    return make(BARE, 0, ldm.clip.Tokenizer.openai().merges) if name == "sd1" else reduced(name)


def test_a_token_learns_a_word_of_the_trained_model_and_nothing_else_moves():
    pipe = ldm.load()
    before, plain, target = states(pipe), heard(pipe, "a red circle"), context(pipe, "a red circle").detach()
    inversion = TextualInversion(pipe, "<dot>", init="square", vectors=4)
    optimiser = torch.optim.AdamW(inversion.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        loss = (context(pipe, "a red <dot>") - target)[:, -1].square().mean()  # of the last token's state
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(heard(pipe, "a red circle")[0], plain[0])
    others = [network.state_dict() for network in pipe.networks()]
    assert [k for state in others for k in state if ".added." in k] == ["tokens.added.771"]
    inversion.remove()
    assert unchanged(pipe, before) and pipe.tokenizers[0].added == {}


@pytest.mark.parametrize("name", ["sd1", "sdxl", "ldm-text2img"])
def test_gradients_reach_the_new_vectors_alone(name: str):
    pipe = model(name)
    assert all(p.requires_grad for network in pipe.networks() for p in network.parameters())
    inversion = TextualInversion(pipe, "<cat>", vectors=2)
    asked = {p for network in pipe.networks() for p in network.parameters() if p.requires_grad}
    assert asked == set(inversion.parameters()) and len(asked) == len(pipe.text_encoders)
    found = trained(nn.ModuleList(pipe.text_encoders))
    assert [name.rpartition(".")[0] for name in found] == [f"{i}.tokens.added" for i in range(len(asked))]
    sum(x.square().mean() for x in pipe.condition(["a <cat>", "a hat"]) if x is not None).backward()
    assert all(p.grad.abs().sum(dim=1).min() > 0 for p in inversion.parameters())
    assert not any(p.grad is not None for n in pipe.networks() for p in n.parameters() if p not in asked)
    for own in inversion.parameters():
        own.grad = None
    pipe.condition(["a hat"]).context.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in inversion.parameters())
    inversion.remove()
    assert all(p.requires_grad for network in pipe.networks() for p in network.parameters())


def test_it_begins_as_its_words_in_turn():
    pipe = make(merges=ldm.clip.Tokenizer.openai().merges, family=BARE)
    rows = pipe.text_encoders[0].tokens.weight
    ids = pipe.tokenizers[0].encode("big cat")
    inversion = TextualInversion(pipe, "<cat>", init="big cat", vectors=3)
    assert torch.equal(inversion.vectors[0], rows[[ids[0], ids[1], ids[0]]])
    assert torch.equal(heard(pipe, "a <cat>")[0], heard(pipe, "a big cat big")[0])
    again = TextualInversion(pipe, "<dog>", init="<cat>", vectors=3)
    assert torch.equal(again.vectors[0], inversion.vectors[0])
    assert all(p.requires_grad for p in inversion.parameters())  # both are trained


def test_without_words_it_is_drawn_as_the_table_is_and_again_the_same():
    pipe, found = make(), []
    table = pipe.text_encoders[0].tokens.weight.detach()
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        inversion = TextualInversion(pipe, "<cat>", vectors=18, generator=generator)
        found.append(inversion.vectors[0].detach().clone())
        inversion.remove()
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert float(found[0].std()) == pytest.approx(float(table.std()), rel=0.1)
    assert float((found[0].mean(0) - table.mean(0)).abs().max()) < 5 * float(table.std()) / 18**0.5


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sd2-v", "sdxl")]


@pytest.mark.parametrize("name", ["sd1", *SLOW])
@torch.no_grad()
def test_diffusers_hears_what_is_saved(name: str, tmp_path):
    from tests.reference.test_family_pipelines import peer_of

    pipe = model(name)
    ldm.save(pipe, tmp_path / "folder", layout="diffusers")
    inversion = grown(TextualInversion(pipe, "<cat>", "cat", 2))
    expected = heard(pipe, "a <cat>, fog")
    inversion.save(tmp_path / "a.safetensors")
    inversion.remove()
    peer, saved = peer_of(tmp_path / "folder"), read_all(tmp_path / "a.safetensors")
    if name == "sdxl":
        for part, end in (("clip_l", ""), ("clip_g", "_2")):
            there = {key: getattr(peer, key + end) for key in ("tokenizer", "text_encoder")}
            peer.load_textual_inversion({"<cat>": saved[part]}, **there)
        context, _, pooled, _ = peer.encode_prompt("a <cat>, fog", device="cpu")
        assert error(expected[1][:, : pooled.shape[1]], pooled) <= 1e-5
    else:
        peer.load_textual_inversion(tmp_path, weight_name="a.safetensors")
        context, _ = peer.encode_prompt("a <cat>, fog", "cpu", 1, False)
    assert error(expected[0], context) <= 1e-5 and error(heard(pipe, "a cat, fog")[0], context) > 1e-3


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_what_is_saved_is_loaded_as_the_same(name: str, tmp_path):
    pipe = model(name)
    before, path = states(pipe), tmp_path / "zwx.safetensors"
    inversion = grown(TextualInversion(pipe, "zwx", "hat", 3))
    expected = heard(pipe, "a zwx")
    for form in ("diffusers", "a1111"):
        inversion.save(path, form)  # when it is removed, too
        inversion.remove()
        assert pipe.load_textual_inversion(path) == "zwx"
        assert all(map(torch.equal, heard(pipe, "a zwx"), expected))
        pipe.unload_textual_inversion()
    assert unchanged(pipe, before)
    inversion.save(path, dtype=torch.float16)
    assert {x.dtype for x in read_all(path).values()} == {torch.float16}


def test_it_goes_with_a_lora_and_in_a_narrow_dtype():
    pipe = make().to(dtype=torch.bfloat16)
    lora = LoRA(pipe, 2, networks=("unet", "text_encoder"))
    inversion = TextualInversion(pipe, "<cat>")
    wanted = {*lora.parameters(), *inversion.parameters()}
    assert {p for n in pipe.networks() for p in n.parameters() if p.requires_grad} == wanted
    assert all(p.dtype == torch.float32 for p in inversion.parameters())
    told = context(pipe, "a <cat>")
    assert told.dtype == torch.bfloat16
    told.float().square().mean().backward()
    assert all(p.grad.any() for p in inversion.parameters())
    pipe.unload_textual_inversion("<cat>")
    inversion.remove()
    assert not any(p.requires_grad for p in inversion.frozen) and not pipe.tokenizers[0].added


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": "a"}, "part of the vocabulary"), ({"token": ""}, "neither begins"),
        ({"vectors": 0}, "vectors must be from 1 to 18"), ({"vectors": 19}, "vectors must be from 1 to 18"),
        ({"init": "zwxq qxwz"}, "tokens, for 1 vectors"), ({"init": ""}, "is 0 tokens"),
        ({"init": 3}, "init must be a str"), ({"init": "<|endoftext|>"}, "words that are known"),
    ],
)  # fmt: skip
def test_wrong_ways_are_refused_and_leave_nothing(options, words):
    pipe = make()
    before = states(pipe)
    with pytest.raises(InputError, match=words):
        TextualInversion(pipe, **{"token": "<cat>"} | options)
    assert unchanged(pipe, before) and not pipe.tokenizers[0].added
    assert all(p.requires_grad for network in pipe.networks() for p in network.parameters())


def test_a_wrong_place_form_or_model_is_refused(tmp_path):
    inversion = TextualInversion(make(), "<cat>")
    for path, form in ((tmp_path / "a.bin", "diffusers"), (tmp_path / "a.safetensors", "kohya")):
        with pytest.raises(InputError):
            inversion.save(path, form)
    with pytest.raises(CheckpointError, match="is not a folder"):
        inversion.save(tmp_path / "nowhere" / "a.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="hears no words"):
        TextualInversion(reduced("ldm-cin256"), "<cat>")
