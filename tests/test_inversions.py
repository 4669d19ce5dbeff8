"""Textual inversion: added tokens are heard as diffusers hears them, and leave all else as it was."""

import logging
import os
import pickle
import zipfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ldm
from ldm.checkpoint.inversion import Embedding, read_embedding, write_embedding
from ldm.clip import Tokenizer, WordPiece
from ldm.clip.tokenizer import vocabulary
from ldm.errors import CheckpointError, InputError
from ldm.prompts import chunks, encode_weighted
from ldm.training.cache import Texts
from tests.reduced import REDUCED
from tests.reduced import make as reduced
from tests.tiny import BARE, TINY, error, make, read_all, same, unit_noise

BOUND = 1e-4  # of latents, as in tests/reference
QUIET = {"progress": False, "num_inference_steps": 2, "seed": 1, "output_type": "latent"}
PLAIN = ["a cat", "", "<CAT> hat, SKS-Cat", "a < cat >", "sks - cat", "one two three " * 60]
MARK = Path("/tmp/ldm-a-pickle-was-executed")


def vectors(pipe, count: int, seed: int = 0) -> list[torch.Tensor]:
    """For each text encoder, as large as its table's rows are."""
    return [
        unit_noise(seed + i, count, encoder.config.width) * encoder.tokens.weight.detach().std()
        for i, encoder in enumerate(pipe.text_encoders)
    ]


def file_of(path: Path, each: list[torch.Tensor], token: str = "<cat>") -> Path:
    """A file of diffusers, or of SDXL, whose token is what it is called."""
    save_file({token: each[0]} if len(each) == 1 else {"clip_l": each[0], "clip_g": each[1]}, path)
    return path


def states(pipe) -> list[dict]:
    return [{key: value.clone() for key, value in n.state_dict().items()} for n in pipe.networks()]


def unchanged(pipe, before: list[dict]) -> bool:
    pairs = zip(pipe.networks(), before, strict=True)
    return all(same(dict(network.state_dict()), old) for network, old in pairs)


@torch.no_grad()
def heard(pipe, *prompts: str) -> list[torch.Tensor]:
    """What the UNet is told."""
    return [x for x in pipe.condition(list(prompts)) if x is not None]


@pytest.fixture(scope="module")
def once():
    """A model that is as it was before when all tests are over."""
    pipe = make()
    before = states(pipe)
    yield pipe
    assert unchanged(pipe, before)


@pytest.fixture
def tiny(once):
    """The same without added tokens."""
    yield once
    once.unload_textual_inversion()


@pytest.fixture(scope="module", params=["sd1", pytest.param("sd2-v", marks=pytest.mark.slow), "sdxl"])
def both(request, tmp_path_factory):
    """Ours and diffusers' pipeline, with the same tokens of one and of three vectors, and what was before."""
    from tests.reference.test_family_pipelines import peer_of

    folder, merges = tmp_path_factory.mktemp("pair"), Tokenizer.openai().merges
    pipe = make(BARE, 0, merges) if request.param == "sd1" else reduced(request.param)
    ldm.save(pipe, folder / "model", layout="diffusers")
    peer, before = peer_of(folder / "model"), heard(pipe, *PLAIN)
    for token, count, seed in (("sks-cat", 1, 0), ("<cat>", 3, 5)):
        each = vectors(pipe, count, seed)
        assert pipe.load_textual_inversion(file_of(folder / "a.safetensors", each, token), token) == token
        for (tokenizer, encoder), own in zip(parts(peer), each, strict=True):
            there = {"text_encoder": encoder, "tokenizer": tokenizer}
            peer.load_textual_inversion({token: own}, token=token, **there)
    return pipe, peer, before


def parts(peer) -> list[tuple]:
    """A tokenizer and a text encoder, or two of both."""
    two = hasattr(peer, "tokenizer_2")
    first = (peer.tokenizer, peer.text_encoder)
    return [first, (peer.tokenizer_2, peer.text_encoder_2)] if two else [first]


def test_pictures_are_those_of_diffusers(both):
    from tests.reference.test_family_pipelines import GUIDANCE, SEED, theirs

    pipe, peer, _ = both
    side = 2 ** len(pipe.family.unet.channels) * pipe.family.vae.factor  # the deepest level is 2 × 2
    options = {"num_inference_steps": 1, "height": side, "width": side}
    options |= {"guidance_scale": GUIDANCE, "negative_prompt": "Sks-cat, sks-cats <cat>"}
    prompt, other = "<cat>s and a sks-cat. <CAT>", "cats and a sks-cat. <CAT>"
    expected = theirs(peer, prompt=prompt, **options)
    found, plain = (pipe(text, **QUIET | options | {"seed": SEED}).latents for text in (prompt, other))
    assert error(found, expected) <= BOUND and error(plain, expected) > 30 * BOUND


@torch.no_grad()
def test_long_prompts_are_chunks_as_transformers_hears_each(both):
    pipe, peer, _ = both
    prompt = "one two three four " * 18 + "five <cat> and " + "a sks-cat by a <cat> " * 12
    context, at = pipe.condition([prompt]).context, 0
    for tokenizer, (theirs, network) in zip(pipe.tokenizers, parts(peer), strict=True):
        mine = [own for ids in tokenizer.added.values() for own in ids]
        names = theirs.convert_tokens_to_ids(["sks-cat", "<cat>", "<cat>_1", "<cat>_2"])
        other, found = dict(zip(mine, names, strict=True)), []
        ids, _ = chunks(tokenizer, prompt, False)
        assert len(ids) == 3
        for row in ids.tolist():
            out = network(torch.tensor([[other.get(x, x) for x in row]]), output_hidden_states=True)
            found.append(out.hidden_states[-2] if pipe.family.vector else out.last_hidden_state)
        expected = torch.cat(found, dim=1)
        assert error(context[..., at : at + expected.shape[2]], expected) <= 1e-5
        at += expected.shape[2]


def test_another_vector_is_another_picture(tiny, tmp_path):
    found = []
    for scale in (1.0, 1.0, 1.01):
        each = [scale * own for own in vectors(tiny, 2)]
        tiny.load_textual_inversion(file_of(tmp_path / "a.safetensors", each))
        found.append(tiny("a <cat> hat", **QUIET).latents)
        tiny.unload_textual_inversion("<cat>")
    assert torch.equal(found[0], found[1]) and error(found[2], found[0]) > 1e-4


def test_prompts_without_the_token_are_the_same_bit_for_bit(both):
    pipe, _, before = both
    assert all(map(torch.equal, heard(pipe, *PLAIN), before))
    told, plain = heard(pipe, "a <cat>, sks-cat"), heard(pipe, "a cat, cat")
    assert all(error(a, b) > 1e-3 for a, b in zip(told, plain, strict=True))


def test_the_first_latent_diffusion_model_takes_tokens_too(tmp_path):
    pipe = reduced("ldm-text2img")
    before, weights = heard(pipe, *PLAIN), states(pipe)
    pipe.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(pipe, 3)))
    assert all(map(torch.equal, heard(pipe, *PLAIN), before))
    assert error(heard(pipe, "a <cat>")[0], heard(pipe, "a cat")[0]) > 1e-3
    pipe.unload_textual_inversion()
    assert unchanged(pipe, weights) and not pipe.tokenizers[0].added


@torch.no_grad()
def test_the_pooled_text_is_the_end_tokens():
    """An added token has a higher id than the end, and is not taken for it."""
    (text,) = REDUCED["sdxl"].texts[1:]
    encoder, tokenizer = ldm.clip.TextEncoder(text.config), Tokenizer.openai(pad=text.pad)
    ids, cat = tokenizer("a cat on a hat"), tokenizer.encode("cat")
    new = encoder.tokens.add(encoder.tokens.weight[cat].clone())
    other = ids.masked_fill(ids == cat[0], new[0])
    assert int(other.max()) == new[0]
    assert all(map(torch.equal, encoder.pooled(other), encoder.pooled(ids)))


TEXTS = [
    "a <cat> on a mat", "<cat>", "<cat><cat>", "x<cat>y", "<CAT> <Cat>", "zwxZWXzwX Zwx", "<cat>x <cat>xx",
    "<|endoftext|><cat><|startoftext|>", "< cat>", "  <cat>  ", "caf\u00e9<cat>\u732b", "", "<cat>_1",
    "my  own token my own token!", "&lt;cat&gt; &amp;<cat>", "sks-cat's sks-cats asks-cat",
    "ZWX\u00e9 \u3000ZWX", "<|endoftext",
]  # fmt: skip


def test_tokens_are_found_where_transformers_finds_them(tmp_path):
    from tests.reference.peers import peer_tokenizer

    peer, mine = peer_tokenizer(tmp_path), Tokenizer.openai()
    for i, token in enumerate(["<cat>", "ZWX", "<cat>x", "my own token", "sks-cat", "<|endoftext"]):
        assert peer.add_tokens(token) == 1
        mine = mine.adding(token, [49408 + i])
    for text in TEXTS:
        assert mine.encode(text) == peer(text).input_ids[1:-1], text
    assert mine.without("ZWX").encode("ZWX") == Tokenizer.openai().encode("zwx")


def test_a_token_is_as_many_tokens_as_it_has_vectors():
    tokenizer = Tokenizer.openai().adding("<My Cat>", [50000, 50001, 50002]).adding("sks", [50003])
    assert tokenizer.encode("a <My Cat>!") == [320, 50000, 50001, 50002, 256]
    assert ldm.tokens("a <My Cat> asks", tokenizer) == ["a", "<My Cat>", "<My Cat>", "<My Cat>", "a", "sks"]
    plain = WordPiece.bert()
    bert = plain.adding("<Cat>", [40000, 40001])
    assert bert.encode("Embeddings <Cat>s") == [*plain.encode("embeddings"), 40000, 40001, *plain.encode("s")]
    assert ldm.tokens("[CLS] <Cat>", bert) == ["[CLS]", "<Cat>", "<Cat>"]


def test_what_is_lost_is_told_with_the_token(caplog):
    tokenizer = Tokenizer.openai(length=6).adding("<cat>", [50000, 50001])
    with caplog.at_level(logging.WARNING, "ldm"):
        tokenizer("one two three four <cat> five")
    assert "has 7 tokens and 4 fit; lost: '<cat> five'" in caplog.text


def test_vectors_of_a_token_stay_in_one_chunk_and_have_one_weight():
    tokenizer = Tokenizer.openai(length=8).adding("<cat>", [50000, 50001, 50002])
    ids, weights = chunks(tokenizer, "one two three four (<cat>:1.5) five")
    assert ids[0].tolist()[1:6] == [*tokenizer.encode("one two three four"), 49407]
    assert ids[1].tolist()[1:5] == [50000, 50001, 50002, *tokenizer.encode("five")]
    assert weights[1].tolist() == [1, 1.5, 1.5, 1.5, 1, 1, 1, 1]


@torch.no_grad()
def test_weights_count_for_added_tokens(tiny, tmp_path):
    tiny.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(tiny, 2)))
    prompts = ["a <cat>", "a (<cat>:1.5)"]
    plain, weighted = encode_weighted(tiny.tokenizers, tiny.text_encoders, prompts)[0]
    same_, text = encode_weighted(tiny.tokenizers, tiny.text_encoders, prompts, False)[0]
    assert torch.equal(plain, same_) and error(weighted, plain) > 1e-2 and error(text, weighted) > 1e-2


def test_a_word_that_is_watched_may_be_an_added_token(tiny, tmp_path):
    tiny.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(tiny, 3)))
    with ldm.record_attention(tiny) as maps:
        tiny("a <cat> on red", **QUIET)
    assert maps.words()[:2] == ["a", "<cat>"]
    assert maps["<cat>"].shape == (1, 16, 16) and float(maps["<cat>"].min()) > 0


FORMS = {  # the file, what is in it, and whether that is the first vector alone
    "one vector": ("<cat>.safetensors", lambda v: {"<cat>": v[0]}, True),
    "several": ("x.safetensors", lambda v: {"<cat>": v}, False),
    "float16": ("x.safetensors", lambda v: {"<cat>": v.half()}, False),
    "float64": ("x.safetensors", lambda v: {"<cat>": v.double()}, False),
    "a1111": ("<cat>.safetensors", lambda v: {"emb_params": v}, False),
    "learned_embeds.bin": ("learned_embeds.bin", lambda v: {"<cat>": v[0].clone()}, True),
    "bin of a parameter": ("x.bin", lambda v: {"<cat>": nn.Parameter(v)}, False),
    "a1111's pt": (
        "<cat>.pt",
        lambda v: {
            "string_to_token": {"*": 265}, "string_to_param": {"*": v.clone().requires_grad_()},
            "name": "another", "step": 1500, "sd_checkpoint": "7460a6fa", "sd_checkpoint_name": None,
        },
        False,
    ),
    "of Gal's code": (
        "<cat>.pt",
        lambda v: {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": nn.ParameterDict({"*": nn.Parameter(v)}),
        },
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_use_is_read(form: str, tiny, tmp_path):
    name, build, first = FORMS[form]
    own = vectors(tiny, 2)[0].half().float()
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(build(own), path)
    assert tiny.load_textual_inversion(path) == "<cat>"
    assert tiny.load_textual_inversion(str(path), token="other-name") == "other-name"
    for token in ("<cat>", "other-name"):
        ids = torch.tensor(tiny.tokenizers[0].encode(token))
        assert torch.equal(tiny.text_encoders[0].tokens(ids), own[:1] if first else own)


def test_the_refiner_hears_the_second_half_of_sdxls(tmp_path):
    each = [unit_noise(i, 2, text.config.width) for i, text in enumerate(REDUCED["sdxl"].texts)]
    found = read_embedding(file_of(tmp_path / "zwx.safetensors", each), REDUCED["sdxl-refiner"])
    assert found.token == "zwx" and len(found.vectors) == 1 and torch.equal(found.vectors[0], each[1])


@pytest.mark.parametrize("form", ["diffusers", "a1111"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_what_is_written_is_read(name: str, form: str, tmp_path):
    family, path = REDUCED[name], tmp_path / "zwx.safetensors"
    each = [unit_noise(i, 2, text.config.width) for i, text in enumerate(family.texts)]
    write_embedding(path, family, Embedding("zwx", each), form)
    found = read_embedding(path, family)
    assert found.token == "zwx" and all(map(torch.equal, found.vectors, each))
    keys = {"clip_l", "clip_g"} if name == "sdxl" else {"zwx"} if form == "diffusers" else {"emb_params"}
    assert set(read_all(path)) == keys and list(tmp_path.iterdir()) == [path]


def test_tokens_come_off_in_any_order_and_ids_are_not_given_twice(tmp_path):
    pipe = make()
    before, plain = states(pipe), heard(pipe, "a hat")
    for i, token in enumerate(("<a>", "<b>", "<c>")):
        pipe.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(pipe, i + 1, i), token))
    b, c = heard(pipe, "a <b>"), heard(pipe, "a <c>")
    pipe.unload_textual_inversion("<a>")
    assert torch.equal(heard(pipe, "a <b>")[0], b[0]) and torch.equal(heard(pipe, "a <c>")[0], c[0])
    pipe.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(pipe, 1, 7), "<d>"))
    assert pipe.tokenizers[0].added["<d>"] == (714 + 6,)
    pipe.unload_textual_inversion("<c>")
    assert torch.equal(heard(pipe, "a <b>")[0], b[0])
    pipe.unload_textual_inversion()
    pipe.unload_textual_inversion()
    assert unchanged(pipe, before) and torch.equal(heard(pipe, "a hat")[0], plain[0])
    with pytest.raises(InputError, match="no token '<b>' was added; there are none"):
        pipe.unload_textual_inversion("<b>")


def test_pipelines_that_share_encoders_do_not_mistake_tokens(tmp_path):
    one = make()
    other = ldm.Pipeline.of(one)
    for pipe, token, seed in ((one, "<a>", 1), (other, "<b>", 2)):
        pipe.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(pipe, 1, seed), token))
    a, third = heard(one, "<a>")[0], ldm.Pipeline.of(one)
    other.unload_textual_inversion()
    assert torch.equal(heard(one, "<a>")[0], a) and not torch.equal(heard(other, "<a>")[0], a)
    one.unload_textual_inversion()
    one.load_textual_inversion(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="they belong to different models"):
        third.condition(["<a>"])
    third.unload_textual_inversion()


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_model_is_saved_without_added_tokens_and_says_so(layout: str, tmp_path, caplog):
    pipe = reduced("sd1")
    old, new = tmp_path / "before", tmp_path / "after"
    ldm.save(pipe, old, layout=layout)
    pipe.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(pipe, 2)))
    with caplog.at_level(logging.WARNING, "ldm"):
        ldm.save(pipe, new, layout=layout)
    assert "after is saved without <cat>" in caplog.text
    files = [[p for p in (root, *sorted(root.rglob("*"))) if p.is_file()] for root in (old, new)]
    assert [p.relative_to(old) for p in files[0]] == [p.relative_to(new) for p in files[1]]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_other_dtypes_go_along(tmp_path):
    pipe = make().to(dtype=torch.bfloat16)
    pipe.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(pipe, 2)))
    assert heard(pipe, "a <cat>")[0].dtype == torch.bfloat16
    assert heard(pipe.to(dtype=torch.float32), "a <cat>")[0].dtype == torch.float32
    path = file_of(tmp_path / "a.safetensors", [torch.eye(1, 48) * 1e6], "<d>")
    with pytest.raises(CheckpointError, match=r"<d> has 1 values beyond the range of torch.float16"):
        pipe.to(dtype=torch.float16).load_textual_inversion(path)
    assert list(pipe.tokenizers[0].added) == ["<cat>"]


def test_remembered_texts_follow_the_vectors(tiny, tmp_path):
    texts, found = Texts(tiny, tmp_path / "cache"), []
    plain, _ = texts("a hat")
    for seed in (1, 2, 1):
        tiny.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(tiny, 2, seed)))
        found.append(texts("a <cat>")[0])
        assert torch.equal(found[-1], tiny.condition(["a <cat>"]).context)
        assert torch.equal(texts("a hat")[0], plain)
        tiny.unload_textual_inversion()
    assert error(found[1], found[0]) > 1e-2 and torch.equal(found[2], found[0])
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3  # of the third time none


def test_a_loaded_token_needs_no_gradient_and_a_pipeline_can_be_copied(tiny, tmp_path):
    tiny.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(tiny, 2)))
    assert not any(p.requires_grad for p in tiny.text_encoders[0].tokens.added.values())
    told, other = heard(tiny, "a <cat>")[0], deepcopy(tiny)
    tiny.unload_textual_inversion()
    assert torch.equal(heard(other, "a <cat>")[0], told) and error(heard(tiny, "a <cat>")[0], told) > 1e-2


class Bomb:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


def hostile(path: Path, kind: str) -> Path:
    """A file that is no embedding for a model of one encoder of width 48."""
    good = torch.ones(2, 48)
    tensors = {
        "nothing": {}, "two tokens": {"<a>": good, "<b>": good + 1}, "numbers": {"<a>": good.long()},
        "a model": {f"w.{i}": good + i for i in range(9)}, "three axes": {"<a>": good[None]},
        "no vectors": {"<a>": good[:0]}, "a number": {"<a>": torch.tensor(1.0)},
        "not finite": {"<a>": good * torch.inf}, "another width": {"<a>": torch.ones(2, 1024)},
        "too many": {"<a>": torch.ones(2000, 48)}, "half": {"clip_g": torch.ones(2, 1280)},
        "of SDXL": {"clip_l": good, "clip_g": torch.ones(2, 1280)},
    }  # fmt: skip
    if kind in tensors:
        save_file(tensors[kind], path)
    elif kind == "a bomb":
        torch.save({"string_to_param": {"*": good}, "name": Bomb()}, path)
    elif kind == "a bare pickle":
        path.write_bytes(pickle.dumps({"<a>": [1.0]}))
    elif kind == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    elif kind == "no tensors":
        torch.save({"string_to_param": {"*": 3}}, path)
    elif kind == "no dict":
        torch.save(good, path)
    elif kind == "cut short":
        save_file({"<a>": good}, path)
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "a page":
        path.write_bytes(b"<html>not found</html>")
    elif kind == "a folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
@pytest.mark.parametrize(
    ("kind", "words"),
    {
        "nothing": "has nothing, which is no embedding", "two tokens": "has <a>, <b>, which is no embedding",
        "a model": "and 5 more", "numbers": "is of torch.int64", "three axes": r"<a> is \[1, 2, 48\]",
        "no vectors": r"<a> is \[0, 48\]", "a number": r"<a> is \[\]", "not finite": "not finite",
        "another width": "width 1024, as of Stable Diffusion 2, and sd1 needs 48", "too many": "2000 vectors",
        "missing": "does not exist", "of SDXL": "as of SDXL, and sd1", "half": "clip_g, as of SDXL",
        "a bomb": "Nothing was executed", "a bare pickle": "never executed", "a page": "HTML",
        "another zip": "without one data.pkl", "no tensors": "is no tensor", "cut short": "truncated",
        "no dict": "no state dict but a", "a folder": "cannot be read",
    }.items(),
)  # fmt: skip
def test_hostile_files_are_refused_and_change_nothing(kind, words, suffix, tiny, tmp_path):
    tokenizers, path = list(tiny.tokenizers), hostile(tmp_path / f"x.{suffix}", kind)
    with pytest.raises(CheckpointError, match=words) as caught:
        tiny.load_textual_inversion(path)
    assert f"x.{suffix}" in str(caught.value) and not MARK.exists()
    assert tiny.tokenizers == tokenizers and not tiny.text_encoders[0].tokens.added


@pytest.mark.parametrize("parts", [b"cmath\ncos\n)\x81.", b"ctorch.nn.modules.container\nParameterDict\n)R."])
def test_a_pickle_makes_only_what_it_may(parts: bytes, tiny, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + parts)
    with pytest.raises(CheckpointError, match=r"asks for math\.cos|nothing was executed"):
        tiny.load_textual_inversion(tmp_path / "x.pt")


def test_sdxl_says_what_it_needs(tmp_path):
    family, path = REDUCED["sdxl"], tmp_path / "a.safetensors"
    first, second = (torch.ones(2, text.config.width) for text in family.texts)
    cases = {
        "width 48, as of no family known here, and sdxl needs 48 and 80": {"<a>": first},
        "has no clip_g, but sdxl needs it": {"clip_l": first},
        "2 and 1 vectors": {"clip_l": first, "clip_g": second[:1]},
        "width 80 and 48, as of SDXL": {"clip_l": second, "clip_g": first},
    }
    for words, tensors in cases.items():
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=words):
            read_embedding(path, family)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "neither begins nor ends"), (" <a>", "neither begins nor ends"), ("a", "part of the vocabulary"),
        ("<|endoftext|>", "part of the vocabulary"), ("<cat>", "was added before"), (3, "must be a str"),
        ("\ud800", "not valid Unicode"),
    ],
)  # fmt: skip
def test_tokens_that_cannot_be_are_refused(token, words, tiny, tmp_path):
    path = file_of(tmp_path / "a.safetensors", vectors(tiny, 1))
    tiny.load_textual_inversion(path)
    tokenizers = list(tiny.tokenizers)
    with pytest.raises(InputError, match=words):
        tiny.load_textual_inversion(path, token)
    assert tiny.tokenizers == tokenizers and len(tiny.text_encoders[0].tokens.added) == 1


def test_a_whole_word_of_the_vocabulary_is_none(tmp_path):
    pipe = ldm.load()
    assert "circle" not in pipe.tokenizers[0].vocab and "circle</w>" in pipe.tokenizers[0].vocab
    with pytest.raises(InputError, match="part of the vocabulary"):
        pipe.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(pipe, 1)), "circle")


def test_models_without_words_and_what_is_no_path_are_refused(tiny, tmp_path):
    save_file({"<a>": torch.ones(1, 40)}, tmp_path / "a.safetensors")
    for name in ("ldm-cin256", "ldm-celeba256"):
        with pytest.raises(InputError, match="hears no words"):
            read_embedding(tmp_path / "a.safetensors", REDUCED[name])
    ldm.Pipeline(REDUCED["ldm-celeba256"], tiny.unet, tiny.vae, [], []).unload_textual_inversion()
    for source in (3, None):
        with pytest.raises(InputError, match="source must be"):
            tiny.load_textual_inversion(source)


def test_ids_begin_behind_the_table_however_few_of_its_rows_have_pieces(tiny, tmp_path):
    short = Tokenizer.openai().merges[:100]
    pipe = ldm.Pipeline(TINY, tiny.unet, tiny.vae, [make().text_encoders[0]], [])
    pipe.tokenizers = [Tokenizer(vocabulary(short), short, length=20)]
    pipe.load_textual_inversion(file_of(tmp_path / "a.safetensors", vectors(pipe, 2)))
    assert pipe.tokenizers[0].encode("<cat>") == [714, 715]
