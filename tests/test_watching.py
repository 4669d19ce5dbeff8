"""What pixels attend to: maps are the network's own attention, and recording leaves no trace on images."""

import threading

import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from PIL import Image

import ldm
from ldm.attention import Attention, sdpa
from ldm.clip import Tokenizer, WordPiece
from ldm.errors import InputError
from ldm.maps import Said, captioned, heated
from ldm.prompts import chunks
from ldm.watching import shares
from tests import reduced, tiny
from tests.tiny import PNG_SIDE, error, unit_noise

QUIET = {"progress": False, "num_inference_steps": 2, "seed": 3, "output_type": "latent"}
CLIP, BERT = Tokenizer.openai(), WordPiece.bert()
LONG = " ".join(["a red cat"] * 12)


def recorded(pipe, *args, **options):
    """The maps of a call, and its result."""
    with ldm.record_attention(pipe) as maps:
        result = pipe(*args, **QUIET | options)
    return maps, result


def hooks(pipe):
    return sum(len(module._forward_hooks) for module in pipe.unet.modules())


class Brute:
    """A backend that keeps softmax(q kᵀ / √d) of all that attends to m tokens, in float64."""

    def __init__(self, m: int):
        self.m, self.seen = m, []

    def __call__(self, q, k, v, causal):
        if k.shape[2] == self.m and not causal:
            scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
            self.seen.append(scores.softmax(-1).mean(1))  # [b n m]
        return sdpa(q, k, v, causal)

    def map(self, rows, columns, latent, size):
        """The mean over all layers of what the last `rows` give to some columns. [rows H W]"""
        grids = [tuple(-(-side // 2**i) for side in latent) for i in range(2)]
        large = []
        for p in self.seen:
            grid = next(grid for grid in grids if grid[0] * grid[1] == p.shape[1])
            total = p[-rows:, :, columns].sum(-1).reshape(rows, 1, *grid)
            large.append(F.interpolate(total, size=size, mode="bilinear", align_corners=False)[:, 0])
        return torch.stack(large).mean(0)


@pytest.mark.parametrize("guidance", [1, 7.5])
@pytest.mark.parametrize("size", [(16, 16), (14, 10)])
def test_maps_are_the_attention_of_the_conditional_rows(pipe, guidance, size):
    """float32 against float64: 24 bits, and the rounding of sums of at most 64 terms."""
    said = Said.of("a red cat", pipe.tokenizers[0], False)
    brute = Brute(pipe.tokenizers[0].length)
    options = {"guidance_scale": guidance, "height": size[0], "width": size[1]}
    with ldm.attention_backend(brute):
        maps, _ = recorded(pipe, "a red cat", negative_prompt="dog", num_images_per_prompt=2, **options)
    latent = (size[0] // 2, size[1] // 2)
    assert len(brute.seen) == 2 * 7  # steps; layers down, in the middle and up
    found, right = maps["cat"], [said.columns[i] for i in said.find(pipe.tokenizers[0].encode("cat"))]
    assert found.shape == (2, *size) and found.dtype == torch.float32
    assert error(found, brute.map(2, right, latent, size)) <= 1e-6
    wrong = [column + 1 for column in right]
    assert error(found, brute.map(2, wrong, latent, size)) > 0.05
    if guidance > 1:
        brute.seen = [p[:2] for p in brute.seen]  # the unconditional rows
        assert error(found, brute.map(2, right, latent, size)) > 0.05


def test_parts_and_steps_make_up_the_whole(pipe):
    maps, _ = recorded(pipe, "a red cat")
    steps = [maps.of("cat", step=i) for i in range(2)]
    assert error(torch.stack(steps).mean(0), maps["cat"]) <= 1e-6 and error(*steps) > 1e-3
    down, mid, up = (maps.of("cat", layers=part) for part in ("down", "mid", "up"))
    assert error((2 * down + mid + 4 * up) / 7, maps["cat"]) <= 1e-6
    assert error(down, up) > 1e-2


def test_a_pixel_has_one_attention_to_give():
    attn = tiny.randomise(Attention(16, 4, 24)).requires_grad_(False)
    given = shares(attn, unit_noise(0, 2, 9, 16), unit_noise(1, 2, 20, 24))
    assert given.shape == (2, 9, 20)
    assert float((given.sum(-1) - 1).abs().max()) <= 1e-6 and float(given.min()) > 0


def test_shares_of_words_add_up_to_less_than_one(pipe):
    maps, _ = recorded(pipe, "a red cat, a red dog")
    words = dict.fromkeys(maps.words())
    total = sum(maps[word] for word in words)
    assert float(total.min()) > 0 and float(total.max()) < 1  # the start and the padding have the rest
    assert error(maps["red cat"] + maps["red dog"], maps["red"] + maps["cat"] + maps["dog"]) <= 1e-6
    assert error(maps["a red cat, a red dog"], total) <= 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1},
        {"sampler": "heun"},
        {"guidance_interval": (0.0, 1.0), "num_inference_steps": 4},
        {"blend_prompt": LONG, "blend": 0.5},
        {"prompt_weights": True},
        {"output_type": "np"},
    ],
    ids=str,
)
def test_images_are_the_same_bit_for_bit(pipe, options):
    prompts = ["a cat", LONG, "a (red:1.3) cat"]
    plain = pipe(prompts, **QUIET | options)
    maps, result = recorded(pipe, prompts, **options)
    assert torch.equal(result.latents, plain.latents) and hooks(pipe) == 0
    assert maps["cat"].shape == (3, PNG_SIDE, PNG_SIDE) and float(maps["cat"].min()) > 0
    assert maps.words() == ["a", "cat"]  # also where another prompt is blended in


@pytest.mark.parametrize("name", ["sd2-v", "sdxl", "ldm-text2img", "sd-x4-upscaler"])
def test_every_family_with_words_has_maps(name):
    pipe = reduced.make(name)
    side = pipe.family.size // pipe.family.vae.factor
    small = Image.fromarray(np.full((side, side, 3), 90, np.uint8))
    options = {"image": small} if pipe.family.beside else {}
    plain = pipe("a corgi runs", **QUIET | options)
    maps, result = recorded(pipe, "a corgi runs", **options)
    assert torch.equal(result.latents, plain.latents)
    size = 8 * side if name != "sd-x4-upscaler" else 4 * side
    assert maps["corgi"].shape == (1, size, size)
    assert maps.words() == ["a", "corgi", "runs"]
    assert maps.overlay("corgi").size == (size, size)


def test_an_upscaler_hears_words_in_two_attentions_a_block():
    pipe = reduced.make("sd-x4-upscaler")
    with ldm.record_attention(pipe):
        blocks = [m for m in pipe.unet.modules() if type(m).__name__ == "TransformerBlock"]
        assert hooks(pipe) == sum(1 + block.crossing for block in blocks) > len(blocks)


def test_each_image_has_the_maps_that_it_has_alone(pipe):
    """Prompts of one and of two chunks are asked apart; rounding differs with the size of a batch."""
    prompts = ["a red cat", LONG, "dog"]
    maps, _ = recorded(pipe, prompts)
    for i, prompt in enumerate(prompts[:2]):
        alone, _ = recorded(pipe, prompt, seed=3 + i)
        assert error(maps["cat"][i : i + 1], alone["cat"]) <= 1e-5
        assert maps.words(i) == alone.words()
    assert float(maps["cat"][2].abs().max()) == 0 and float(maps["dog"][2].min()) > 0
    said = Said.of(LONG, pipe.tokenizers[0], False)
    assert max(said.columns) > pipe.tokenizers[0].length  # and so are counted through both
    assert error(maps["cat"][1], maps["red"][1]) > 1e-2


def test_guidance_and_a_negative_prompt_do_not_matter_where_the_latent_is_the_same(pipe):
    first = [
        recorded(pipe, "a cat", **options)[0].of("cat", step=0)
        for options in ({"guidance_scale": 1}, {}, {"negative_prompt": "dog"})
    ]
    assert error(first[1], first[0]) <= 1e-6 and error(first[2], first[0]) <= 1e-6
    other, _ = recorded(pipe, "cat a", guidance_scale=1)
    assert error(other.of("cat", step=0), first[0]) > 1e-2


@hypothesis.given(st.text(), st.booleans())
def test_columns_are_where_the_encoder_is_told_the_tokens(text, weights):
    for tokenizer in (CLIP, BERT):
        try:
            ids, _ = chunks(tokenizer, text, weights)
        except InputError:  # a weight that is none
            continue
        said = Said.of(text, tokenizer, weights)
        assert ids.flatten()[said.columns].tolist() == said.ids
        assert [i for _, own in said.words for i in own] == list(range(len(said.ids)))


def test_columns_count_through_all_chunks():
    short = Tokenizer(CLIP.vocab, CLIP.merges, length=6)  # four words a chunk
    said = Said.of("a b c d e BREAK f (g:1.2)", short, True)
    assert said.columns == [1, 2, 3, 4, 7, 13, 14]
    assert [word for word, _ in said.words] == list("abcdefg")
    assert said.find(short.encode("d e")) == [3, 4] and said.find(short.encode("e d")) == []
    assert Said.of("a a b a a a", short, True).find(short.encode("a a")) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize(
    ("tokenizer", "text", "words"),
    [
        (CLIP, "a Corgi's embeddings!", ["a", "corgi", "'s", "embeddings", "!"]),
        (CLIP, "日本 <|endoftext|> cat", ["日本", "<|endoftext|>", "cat"]),
        (CLIP, "", []),
        (BERT, "Embeddings, a fox", ["embeddings", ",", "a", "fox"]),
    ],
)
def test_words_are_whole(tokenizer, text, words):
    assert [word for word, _ in Said.of(text, tokenizer, False).words] == words


def test_weights_are_no_words_where_they_are_heard(pipe):
    heard, _ = recorded(pipe, "a (red:1.3) cat", prompt_weights=True)
    text, _ = recorded(pipe, "a (red:1.3) cat")
    assert heard.words() == ["a", "red", "cat"] and "(" in text.words()
    assert float(heard["red cat"].min()) > 0
    with pytest.raises(InputError, match="'red cat' is not in the prompt"):
        text["red cat"]


def test_steps_are_looks_of_the_network(pipe):
    for options, count in [({}, 2), ({"sampler": "heun", "num_inference_steps": 3}, 5)]:
        maps, _ = recorded(pipe, "a cat", **options)
        assert len(maps.levels) == count
        assert all(a.ratio >= b.ratio for a, b in zip(maps.levels, maps.levels[1:], strict=False))
    image = Image.new("RGB", (PNG_SIDE, PNG_SIDE), "red")
    options = {"image": image, "mask_image": image, "strength": 0.5, "num_inference_steps": 4}
    maps, result = recorded(pipe, "a cat", **options)
    assert len(maps.levels) == 2 and torch.equal(result.latents, pipe("a cat", **QUIET | options).latents)


def test_the_last_call_counts_and_a_callback_may_look(pipe):
    seen = []
    with ldm.record_attention(pipe) as maps:
        pipe("a dog", **QUIET)
        first = maps["dog"]
        pipe("a cat", callback=lambda i, *_: seen.append(maps.of("cat", step=i)), **QUIET)
        with pytest.raises(InputError, match="'dog' is not in the prompt"):
            maps["dog"]
    last = maps["cat"]
    pipe("a dog", **QUIET)  # outside
    assert torch.equal(maps["cat"], last) and error(torch.stack(seen).mean(0), last) <= 1e-6
    assert error(first, recorded(pipe, "a dog")[0]["dog"]) == 0


def test_blocks_of_several_pipelines(pipe):
    other = tiny.make(seed=9)
    with ldm.record_attention(pipe) as a, ldm.record_attention(other) as b:
        pipe("a cat", **QUIET)
        other("a dog", **QUIET)
        with ldm.record_attention(pipe) as inner:
            pipe("fox", **QUIET)
    assert (a.words(), b.words(), inner.words()) == (["a", "cat"], ["a", "dog"], ["fox"])
    assert error(a["cat"], recorded(pipe, "a cat")[0]["cat"]) == 0
    assert hooks(pipe) == hooks(other) == 0


def test_changed_weights_are_the_ones_that_are_watched():
    """A LoRA is in the weights. Where q is 0 all tokens are alike."""
    changed = tiny.make()
    for name, weight in changed.unet.named_parameters():
        if "cross_attn.q" in name:
            weight.data = torch.zeros_like(weight)
    maps, _ = recorded(changed, "a red cat")
    tokenizer = changed.tokenizers[0]
    expected = len(tokenizer.encode("a red cat")) / tokenizer.length
    assert float((maps["a red cat"] - expected).abs().max()) <= 1e-6


def test_half_precision_is_summed_in_full():
    half = tiny.make().to(dtype=torch.bfloat16)
    whole, _ = recorded(tiny.make(), "a red cat")
    maps, _ = recorded(half, "a red cat")
    found = maps.of("cat", step=0)
    assert found.dtype == torch.float32 and error(found, whole.of("cat", step=0)) <= 2**-7  # 8 bits


def test_another_threads_calls_are_not_recorded(pipe):
    def work():
        pipe("a dog", **QUIET)

    with ldm.record_attention(pipe) as maps:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with pytest.raises(InputError, match="no attention is recorded yet"):
            maps["dog"]
        thread = threading.Thread(target=work)
        thread.start()
        pipe("a cat", **QUIET)
        thread.join()
    assert maps.words() == ["a", "cat"] and len(maps.levels) == 2
    assert error(maps["cat"], recorded(pipe, "a cat")[0]["cat"]) <= 1e-6


def test_threads_record_their_own(pipe):
    found, prompts = {}, ["a cat", "a dog", "a fox"]

    def work(prompt):
        found[prompt] = recorded(pipe, prompt)[0][prompt]

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in prompts:
        assert error(found[prompt], recorded(pipe, prompt)[0][prompt]) <= 1e-6
    assert hooks(pipe) == 0


def test_an_error_leaves_nothing_behind(pipe):
    def stop(*_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"), ldm.record_attention(pipe) as maps:
        assert hooks(pipe) == 7
        pipe("a cat", callback=stop, **QUIET)
    assert hooks(pipe) == 0 and len(maps.levels) == 1
    seen = maps["cat"]
    with pytest.raises(RuntimeError), tiny.hooked(pipe.unet.mid, stop), ldm.record_attention(pipe) as nothing:
        pipe("a cat", **QUIET)
    assert repr(nothing) == "Maps(of no call yet)" and nothing._repr_png_() is None
    with pytest.raises(InputError, match="no attention is recorded yet"):
        nothing["cat"]
    pipe("a cat", **QUIET)
    assert torch.equal(maps["cat"], seen)


def test_pictures(pipe):
    maps, _ = recorded(pipe, "a cat, a dog")
    assert maps.overlay("a dog").size == (PNG_SIDE, PNG_SIDE)
    assert maps.overlay("cat").tobytes() != maps.overlay("dog").tobytes()
    assert maps.overlay("cat", step=0).tobytes() != maps.overlay("cat", layers="up").tobytes()
    assert maps.sheet().size == (3 * 160, 2 * 176)  # x0, a, cat, the comma, dog
    assert maps._repr_png_().startswith(b"\x89PNG") and repr(maps) == "Maps(1 images, 2 steps)"
    assert captioned(Image.new("RGB", (512, 512)), "日").size == (320, 336)


def test_the_picture_is_the_images_own(pipe):
    maps, result = recorded(pipe, "a cat", num_images_per_prompt=2, output_type="pt")
    for row in range(2):
        picture = maps.picture(row, None)
        assert error(picture, result[row]) < 0.1 < error(picture, result[1 - row])  # the last x0 is nearly x
        assert error(maps.picture(row, 0), picture) > 1e-3


def test_the_glow_goes_from_the_least_to_the_most():
    share = torch.tensor([[0.2, 0.3, 0.4, 0.5]])
    black, white = torch.zeros(3, 1, 4), torch.ones(3, 1, 4)
    glow = heated(black, share)
    assert torch.allclose(glow[:, 0, 0], torch.zeros(3)) and torch.allclose(
        glow[:, 0, 3], torch.tensor(2 / 3)
    )
    assert torch.allclose(glow[:, 0, 1], torch.tensor([2 / 3, 0, 0]), atol=1e-6)  # red
    assert torch.allclose(heated(white, share) - glow, torch.tensor(1 / 3))
    assert torch.isfinite(heated(white, torch.full((1, 4), 0.3))).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m["unicorn"], "'unicorn' is not in the prompt; .* of a, red, cat, dog"),
        (lambda m: m["ca"], "not in the prompt"),
        (lambda m: m["cat red"], "not in the prompt"),
        (lambda m: m[""], "not in the prompt"),
        (lambda m: m[0], "phrase must be a str"),
        (lambda m: m.of("cat", step=2), "step must be from 0 to 1"),
        (lambda m: m.of("cat", step=-1), "step"),
        (lambda m: m.of("cat", layers="left"), "layers must be one of all, down, mid, up"),
        (lambda m: m.words(2), "row must be from 0 to 1"),
        (lambda m: m.overlay("cat", 2), "row"),
        (lambda m: m.overlay("cat", 1), "'cat' is not in the prompt; .* of dog"),
        (lambda m: m.overlay("dog", 1, step=7), "step"),
        (lambda m: m.sheet(0, layers=3), "layers"),
    ],
)
def test_wrong_questions_are_refused(pipe, ask, message):
    maps, _ = recorded(pipe, ["a red cat", "dog"])
    with pytest.raises(InputError, match=message):
        ask(maps)


def test_an_empty_prompt_has_no_words(pipe):
    maps, _ = recorded(pipe, "")
    assert maps.words() == [] and maps.sheet().size == (160, 176)
    with pytest.raises(InputError, match="which it has none"):
        maps["cat"]


def test_nothing_can_be_asked_before_a_call(pipe):
    with ldm.record_attention(pipe) as maps:
        for ask in (lambda: maps["cat"], maps.words, lambda: maps.levels, maps.sheet):
            with pytest.raises(InputError, match="no attention is recorded yet"):
                ask()
        assert maps._repr_png_() is None and repr(maps) == "Maps(of no call yet)"


@pytest.mark.parametrize("name", ["ldm-cin256", "ldm-churches256"])
def test_families_without_words_are_refused(name):
    pipe = reduced.make(name)
    with pytest.raises(InputError, match=f"{name} hears no words"), ldm.record_attention(pipe):
        pass
    assert hooks(pipe) == 0


THINGS = {
    "red circle": "navy", "green square": "white", "blue heart": "beige", "yellow circle": "black",
    "orange star": "grey", "pink diamond": "navy", "cyan square": "brown", "purple cross": "white",
    "red arrow": "black", "green triangle": "navy",
}  # fmt: skip


def test_in_the_trained_model_a_shape_attends_to_its_word():
    """On the way up a shape's pixels give its word a multiple of what the ground's give it: 2.7 times in the
    mean of 40 images, in none less than 1.5. More than for the word "background", where it is 1.7."""
    pipe = ldm.load()
    prompts = [f"a large {thing} on a {ground} background" for thing, ground in THINGS.items()]
    maps, result = recorded(pipe, prompts, seed=0, num_inference_steps=None, output_type="np")
    ratios = {"kind": [], "background": []}
    for i, thing in enumerate(THINGS):
        picture = result[i]
        ground = np.median(np.concatenate([picture[0], picture[-1]]), axis=0)
        inside = torch.tensor(np.linalg.norm(picture - ground, axis=-1) > 0.25)
        assert 0.04 < float(inside.float().mean()) < 0.25  # it did draw a shape
        for name, word in (("kind", thing.split()[1]), ("background", "background")):
            own = maps.of(word, layers="up")[i]
            ratios[name].append(float(own[inside].mean() / own[~inside].mean()))
    mean = {name: float(np.exp(np.mean(np.log(found)))) for name, found in ratios.items()}
    assert np.mean(np.array(ratios["kind"]) > 1) >= 0.9
    assert mean["kind"] > 1.8 and mean["kind"] > 1.15 * mean["background"]
