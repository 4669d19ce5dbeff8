"""Weights of words and prompts of any length."""

import re
from itertools import pairwise
from time import perf_counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ldm
from ldm.clip import Tokenizer, WordPiece
from ldm.conditioning import encode_ids
from ldm.errors import CheckpointError, InputError
from ldm.prompts import BREAK, chunks, emphasised, encode_weighted, tokens, weighted
from tests import reduced, tiny
from tests.tiny import error

CLIP, BERT = Tokenizer.openai(), WordPiece.bert()
PLAIN = ["a cat", "", "Ein Käfer, 日本語の犬 🦊!", "x " * 18, "it's <|endoftext|> 3:4 {so} a/b: 1.3"]
LONG = " ".join(f"word{i % 7} and" for i in range(100))  # 300 tokens of either tokenizer
UP, DOWN = 1.1, 1 / 1.1

# worked out by hand from the rules in the web UI's wiki, "Attention/emphasis"
TABLE = [
    ("", [("", 1)]),
    ("a cat", [("a cat", 1)]),
    ("()", [("", 1)]),
    ("(cat)", [("cat", UP)]),
    ("((cat))", [("cat", UP**2)]),
    ("[cat]", [("cat", DOWN)]),
    ("[[cat]]", [("cat", DOWN**2)]),
    ("(cat:1.3)", [("cat", 1.3)]),
    ("(cat: +.5 )", [("cat", 0.5)]),
    ("(cat:0)", [("cat", 0)]),
    ("a (red:1.3) cat", [("a ", 1), ("red", 1.3), (" cat", 1)]),
    ("(a (b:1.5) c:0.5)", [("a ", 0.5), ("b", 0.75), (" c", 0.5)]),
    ("((a:1.5))", [("a", 1.5 * UP)]),
    ("(a [b] c)", [("a ", UP), ("b", 1), (" c", UP)]),
    ("([a])", [("a", 1)]),
    ("[a:1.3]", [("a:1.3", DOWN)]),
    ("(a [b) c]", [("a ", UP), ("b", 1), (" c", DOWN)]),
    ("([a:1.3)b]", [("a", 1.3 * DOWN), ("b", DOWN)]),
    ("a (b", [("a ", 1), ("b", UP)]),
    ("a (b (c", [("a ", 1), ("b ", UP), ("c", UP**2)]),
    ("a [b", [("a ", 1), ("b", DOWN)]),
    ("(a:1.3", [("a:1.3", UP)]),
    ("(a (b:1.3)", [("a ", UP), ("b", UP * 1.3)]),
    ("a) b] c", [("a) b] c", 1)]),
    ("a:1.3) b", [("a:1.3) b", 1)]),
    ("(a:1e3)", [("a:1e3", UP)]),
    ("(a:b:2)", [("a:b", 2)]),
    ("(a:-)", [("a:-", UP)]),
    ("(a)(b)", [("ab", UP)]),
    ("(a:1.0) b", [("a b", 1)]),
    (r"cat \(animal\)", [("cat (animal)", 1)]),
    (r"(cat \(animal\):1.3)", [("cat (animal)", 1.3)]),
    (r"\[a\] \\ (b\))", [("[a] \\ ", 1), ("b)", UP)]),
    (r"\\(a)", [("\\", 1), ("a", UP)]),
    (r"a\b \!", [(r"a\b \!", 1)]),
    ("a BREAK b", [("a", 1), BREAK, ("b", 1)]),
    ("BREAK BREAK a", [BREAK, BREAK, ("a", 1)]),
    ("(a BREAK b:1.3) c", [("a", 1.3), BREAK, ("b", 1.3), (" c", 1)]),
    ("BREAKS Break a_BREAK", [("BREAKS Break a_BREAK", 1)]),
    ("(((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
     [("house", 1.3 * UP**2), (" ", UP), ("on", 1), (" a ", UP), ("hill", 0.5 * UP), (", sun, ", UP),
      ("sky", UP**4), (".", UP)]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "pieces"), TABLE, ids=[text for text, _ in TABLE])
def test_the_grammar(text, pieces):
    found = weighted(text)
    assert [part for part, _ in found] == [part for part, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces], rel=1e-12)


@given(st.text().filter(lambda text: not re.search(r"[\\()\[\]]|BREAK", text)))
def test_a_text_without_marks_is_one_piece(text):
    assert weighted(text) == [(text, 1.0)]


@given(st.text(alphabet=st.sampled_from("ab:.13 \\()[]é犬") | st.characters()))
def test_escaping_gives_any_text_back(text):
    assert weighted(re.sub(r"([\\()\[\]])", r"\\\1", text)) == [(text, 1.0)]


@given(st.text(alphabet="ab:.13 \\()[]"))
def test_marks_only_are_left_out_and_weights_are_in_bounds(text):
    try:
        pieces = weighted(text)
    except InputError:
        return
    assert all(0 <= weight <= 100 for _, weight in pieces)
    assert all(a[1] != b[1] for a, b in pairwise(pieces))
    letters = iter(text)
    assert all(c in letters for part, _ in pieces for c in part)  # in the same order


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(cat:101)", "'cat' is 101;"),
        ("a (cat:-1)", "'cat' is -1;"),
        ("((cat:80):2)", "'cat' is 160;"),
        (f"{'(' * 49}cat", f"'cat' is {1.1**49:.6g}"),
        (f"(cat:{'9' * 400})", "'cat' is inf;"),
        (f"{'(' * 300}(cat:0){':100)' * 300}", "'cat' is nan;"),
        ("(cat:1.2.3)", "'1.2.3' must be a number"),
        ("(cat:...)", "'...' must be a number"),
    ],
)
def test_odd_weights_are_refused_by_name(text, said):
    with pytest.raises(InputError, match=re.escape(said)):
        weighted(text)


DEEP = 10_000


def test_brackets_may_be_as_deep_as_one_likes():
    assert weighted("(" * DEEP + "[" * DEEP + "x") == [("x", 1.0)]  # exactly: the pairs cancel
    assert weighted("[" * DEEP + "x" + "]" * DEEP + "y") == [("x", 0.0), ("y", 1.0)]
    assert weighted("(" * DEEP + "x" + ":1.0)" * DEEP + ")") == [("x)", 1.0)]
    with pytest.raises(InputError, match="'x' is"):
        weighted("(" * DEEP + "x" + ")" * DEEP)


@pytest.mark.parametrize(
    "part", ["(", "[", ")", ":", " ", ": ", ":1", r"\(", "\\", "(a:1.0)", "BREAK ", "([)]"]
)
def test_reading_takes_linear_time(part):
    """100 times the text takes about 100 times as long; were it quadratic, 10000 times."""
    short, long = part * 300, part * 30_000

    def seconds(text):
        begin = perf_counter()
        weighted(text)
        return perf_counter() - begin

    assert seconds(long) < 1500 * max(min(seconds(short) for _ in range(5)), 1e-4)


@pytest.mark.parametrize("tokenizer", [CLIP, BERT, Tokenizer.openai(length=20), Tokenizer.openai(pad="!")])
@pytest.mark.parametrize("text", [*PLAIN, LONG, "日本語の犬 🦊 " * 40, "x " * 75, "x " * 76, "x " * 150])
def test_chunks_hold_every_token_once(tokenizer, text):
    ids, weight = chunks(tokenizer, text)
    whole, room = tokenizer.encode(text), tokenizer.length - 2
    assert ids.shape == weight.shape == (max(1, -(-len(whole) // room)), tokenizer.length)
    assert torch.equal(weight, torch.ones(ids.shape)) and ids.dtype == torch.int64
    cut = [whole[i : i + room] for i in range(0, len(whole), room)] or [[]]
    assert ids.tolist() == [tokenizer.fit(part) for part in cut]


def test_a_prompt_that_fits_has_the_ids_of_the_tokenizer():
    for text in PLAIN:
        assert torch.equal(chunks(CLIP, text)[0], CLIP([text]))


def test_weights_stand_at_their_tokens():
    ids, weight = chunks(CLIP, "a (red fox:1.5) [runs]")
    assert ids[0, :6].tolist() == CLIP(["a red fox runs"])[0, :6].tolist()
    assert weight[0, :7].tolist() == pytest.approx([1, 1, 1.5, 1.5, DOWN, 1, 1])
    assert (weight[0, 5:] == 1).all()


def test_weights_go_on_in_the_next_chunk():
    _, weight = chunks(CLIP, f"{'x ' * 70}({'y ' * 10}:1.5)")
    assert weight.shape == (2, 77)
    assert weight[0].tolist() == [1] * 71 + [1.5] * 5 + [1]
    assert weight[1].tolist() == [1] + [1.5] * 5 + [1] * 71


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a BREAK b", ["a", "b"]),
        ("a BREAK", ["a"]),
        ("BREAK a", ["", "a"]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("BREAK", [""]),
        (f"{'x ' * 75} BREAK b", ["x " * 75, "b"]),
        (f"{'x ' * 76} BREAK b", ["x " * 75, "x", "b"]),
    ],
)
def test_break_begins_a_chunk(text, parts):
    assert torch.equal(chunks(CLIP, text)[0], CLIP(parts))


@pytest.mark.parametrize("text", ["a (red:1.3) [cat] BREAK", r"\(so\)", "(cat:1.2.3)", "(cat:999)"])
def test_without_weights_a_text_is_itself(text):
    ids, weight = chunks(CLIP, text, weights=False)
    assert torch.equal(ids, CLIP([text])) and (weight == 1).all()


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl", "ldm-text2img"])
def model(request):
    return reduced.make(request.param)


def encode_text(tokenizers, encoders, prompts):
    """What the encoders make of prompts that fit, side by side; the last one's pooled text."""
    found = [
        encode_ids(tokenizer(prompts), encoder)
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True)
    ]
    return torch.cat([states for states, _ in found], dim=-1), found[-1][1]


def both(model, prompts, **options):
    return encode_weighted(model.tokenizers, model.text_encoders, prompts, **options)


@torch.no_grad()
@pytest.mark.parametrize("weights", [True, False])
def test_plain_prompts_are_what_they_were_bit_for_bit(model, weights):
    old, old_pooled = encode_text(model.tokenizers, model.text_encoders, PLAIN)
    new, pooled = both(model, PLAIN, weights=weights)
    assert torch.equal(new, old)
    assert pooled is old_pooled is None or torch.equal(pooled, old_pooled)


@torch.no_grad()
@pytest.mark.parametrize("same", ["a (cat:1)", "a ([cat])", "(a cat:1.0)", "([a cat", "a [(cat])"])
def test_weight_one_is_no_weight(model, same):
    assert torch.equal(both(model, [same])[0], both(model, ["a cat"])[0])


@torch.no_grad()
def test_a_short_prompt_beside_a_long_one_is_what_it_was(model):
    """Chunks are encoded as many at a time as there are prompts, so that nothing rounds otherwise."""
    context, pooled = both(model, ["a cat", LONG])
    old, old_pooled = encode_text(model.tokenizers, model.text_encoders, ["a cat", "a dog"])
    blank, _ = encode_text(model.tokenizers, model.text_encoders, ["", ""])
    assert context.shape == (2, 4 * 77, old.shape[-1])
    for k, chunk in enumerate(context[0].split(77)):
        assert torch.equal(chunk, blank[0] if k else old[0])
    assert pooled is None or torch.equal(pooled[0], old_pooled[0])


@torch.no_grad()
def test_each_chunk_is_a_prompt_of_its_own(model):
    whole, pooled = both(model, ["a (red:1.4) cat BREAK a [dog] BREAK"])
    first, first_pooled = both(model, ["a (red:1.4) cat"])
    second, _ = both(model, ["a [dog]"])
    assert torch.equal(whole, torch.cat([first, second], dim=1))
    assert pooled is None or torch.equal(pooled, first_pooled)


@torch.no_grad()
def test_rows_do_not_know_of_each_other(model):
    prompts = ["a (cat:1.4)", LONG, "[a dog] BREAK b", "x"]
    turned = [2, 0, 3, 1]
    context, pooled = both(model, prompts)
    other, other_pooled = both(model, [prompts[i] for i in turned])
    assert tiny.error(other, context[turned]) < 1e-5  # rows of a batch round differently
    assert pooled is None or tiny.error(other_pooled, pooled[turned]) < 1e-5
    alone = both(model, ["a (cat:1.4)"])[0]
    assert tiny.error(context[:1, :77], alone) < 1e-5


@torch.no_grad()
def test_the_formula(model):
    """z' = w z · mean(z) / mean(w z), for each encoder on its own."""
    width = [encoder.config.width for encoder in model.text_encoders]
    plain = both(model, ["a red cat"])[0][0].split(width, dim=-1)
    found = both(model, ["a (red:1.4) [cat]"])[0][0].split(width, dim=-1)
    for tokenizer, z, new in zip(model.tokenizers, plain, found, strict=True):
        w = chunks(tokenizer, "a (red:1.4) [cat]")[1][0].double()[:, None]
        z = z.double()
        assert tiny.error(new, w * z * z.mean() / (w * z).mean()) < 1e-4  # the means are small


@torch.no_grad()
def test_weights_do_not_change_the_pooled_text(model):
    a, b = both(model, ["a red cat"])[1], both(model, ["a (red:3) [cat]"])[1]
    assert a is b is None or torch.equal(a, b)


@torch.no_grad()
def test_the_more_weight_the_larger_a_state_beside_the_others(model):
    def share(weight):
        z = both(model, [f"a (red:{weight}) cat"])[0][0, :, : model.text_encoders[0].config.width]
        return float(z[2].norm() / z[1].norm())

    weights = (0, 0.5, 2, 10)
    assert [share(w) for w in weights] == pytest.approx([w * share(1) for w in weights], rel=1e-4)


def test_a_mean_of_zero_divides_nothing():
    z = torch.tensor([[[1.0, -1.0], [2.0, -2.0]], [[2.0, 0.0], [-1.0, 0.0]]])
    weight = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    assert torch.equal(emphasised(z, weight), z * weight[..., None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_states_keep_their_dtype_and_bits(dtype):
    z = tiny.unit_noise(0, 2, 5, 8).double().add(0.5).to(dtype)
    weight = torch.ones(2, 5)
    weight[1, 2] = 1.5
    found = emphasised(z, weight)
    assert found.dtype == dtype and torch.equal(found[0], z[0]) and not torch.equal(found[1], z[1])
    means = found.double().mean(dim=(1, 2)) / z.double().mean(dim=(1, 2))
    assert means.tolist() == pytest.approx([1, 1], abs=0.02)


def test_tokenizers_that_disagree_are_refused(model):
    encoders = [model.text_encoders[0]] * 2
    with pytest.raises(CheckpointError, match=re.escape("[[1], [2]] chunks")):
        encode_weighted([CLIP, Tokenizer.openai(length=20)], encoders, "x " * 30)


def test_tokenizers_of_other_models_are_refused():
    pipe = tiny.make()
    with pytest.raises(CheckpointError, match="belong to different models"):
        encode_weighted([CLIP], pipe.text_encoders, "a cat")


def test_prompts_are_texts():
    pipe = tiny.make()
    with pytest.raises(InputError, match="str or a list of str"):
        encode_weighted(pipe.tokenizers, pipe.text_encoders, [3])
    with torch.no_grad():
        one = encode_weighted(pipe.tokenizers, pipe.text_encoders, "a cat")[0]
    assert one.shape == (1, 20, 48)


@pytest.mark.parametrize(
    ("tokenizer", "text", "pieces"),
    [
        (CLIP, "astronauts", ["astronauts"]),
        (CLIP, "A photograph of an astronaut", ["a", "photograph", "of", "an", "astronaut"]),
        (CLIP, "embeddings (red:1.2)", ["embe", "ddings", "(", "red", ":", "1", ".", "2", ")"]),
        (CLIP, "café 日", ["café", "日"]),
        (CLIP, "<|endoftext|>", ["<|endoftext|>"]),
        (CLIP, "", []),
        (BERT, "Embeddings!", ["em", "bed", "ding", "s", "!"]),
        (BERT, "日 ##", ["日", "#", "#"]),
        (BERT, "🦊", ["[UNK]"]),
    ],
)
def test_tokens_can_be_read(tokenizer, text, pieces):
    assert tokens(text, tokenizer) == pieces


@given(st.text())
def test_there_are_as_many_readable_tokens_as_ids(text):
    for tokenizer in (CLIP, BERT):
        assert len(tokens(text, tokenizer)) == len(tokenizer.encode(text))


def test_a_pipeline_hears_all_of_a_long_prompt(pipe):
    words, options = "a red cat " * 40, {"seed": 1, "output_type": "latent", "progress": False}
    whole = pipe(words + "blue", **options).latents
    assert error(pipe(words + "green", **options).latents, whole) > 1e-4
    assert error(pipe(words + "blue", negative_prompt="b " * 90, **options).latents, whole) > 1e-4


def test_a_long_prompt_in_a_batch_leaves_the_others_alone(pipe):
    prompts = ["a cat", "a red cat " * 40, "dog", "b " * 15]
    options = {"output_type": "latent", "progress": False, "sampler": "ddpm"}
    both = pipe(prompts, negative_prompt=["", "", "b " * 90, ""], seed=5, **options).latents
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, negative_prompt=["", "", "b " * 90, ""][i], seed=5 + i, **options).latents
        assert error(both[i : i + 1], alone) <= 1e-5


def test_weights_are_heard_where_they_are_asked_for(pipe):
    options = {"seed": 1, "output_type": "latent", "progress": False}
    plain, bare = pipe("a (red:1.5) cat", **options).latents, pipe("a red cat", **options).latents
    heavy = pipe("a (red:1.5) cat", prompt_weights=True, **options)
    assert error(heavy.latents, bare) > 1e-4 and error(heavy.latents, plain) > 1e-4
    assert torch.equal(pipe("a red cat", prompt_weights=True, **options).latents, bare)
    assert torch.equal(pipe("a (red:1.0) cat", prompt_weights=True, **options).latents, bare)
    assert heavy.parameters["prompt_weights"] is True
    with pytest.raises(InputError, match="prompt_weights must be True or False"):
        pipe("a cat", prompt_weights="yes")
    with pytest.raises(InputError, match="weight"):
        pipe("a (cat:101)", prompt_weights=True)


def test_the_tokens_of_a_prompt_can_be_seen():
    assert ldm.tokens("a cat's embeddings!") == ["a", "cat", "'s", "embe", "ddings", "!"]
    with pytest.raises(InputError, match="text"):
        ldm.tokens(3)
