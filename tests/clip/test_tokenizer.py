"""Laws of the tokenizer that need no reference."""

import logging
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.checkpoint.save import write_tokenizer
from ldm.clip import Tokenizer
from ldm.clip.pairs import merged
from ldm.clip.tokenizer import END, START, byte_characters, clean, vocabulary
from ldm.errors import CheckpointError, InputError

MERGES = Tokenizer.openai().merges[:300]
SMALL = {n: Tokenizer(vocabulary(MERGES), MERGES, length=n) for n in (2, 20, 77)}


@pytest.fixture(scope="module")
def openai():
    return Tokenizer.openai()


def test_openai_vocabulary_has_clips_size_and_order(openai):
    ids = openai.vocab
    assert len(openai) == len(ids) == 49408 and sorted(ids.values()) == list(range(49408))
    assert (ids["!"], ids["!</w>"], ids["<|startoftext|>"], ids["<|endoftext|>"]) == (0, 256, 49406, 49407)


def test_padding_is_a_piece_that_is_known():
    assert Tokenizer.openai(length=5, pad="!")("").tolist() == [[49406, 49407, 0, 0, 0]]
    with pytest.raises(CheckpointError, match="no piece '<pad>'"):
        Tokenizer.openai(pad="<pad>")


def test_every_byte_has_its_own_character():
    characters = byte_characters()
    assert sorted(characters) == list(range(256)) and len(set(characters.values())) == 256
    assert not any(character.isspace() for character in characters.values())


@given(st.text(max_size=40))
def test_pieces_spell_the_cleaned_text(openai, text):
    byte_of = {character: byte for byte, character in byte_characters().items()}
    stems = "".join(piece.removesuffix("</w>") for piece in openai.pieces(text.replace("<|", "")))
    spelt = bytes(byte_of[c] for c in stems).decode("utf-8")
    assert spelt == "".join(clean(text.replace("<|", "")).split())


@given(ids=st.lists(st.integers(0, 700), max_size=120))
@pytest.mark.parametrize("length", [2, 20, 77])
def test_a_row_is_start_what_fits_end_and_padding(length, ids):
    row = Tokenizer.fit(SMALL[length], ids)
    kept = ids[: length - 2]
    start, end = SMALL[length].vocab[START], SMALL[length].vocab[END]
    assert row == [start, *kept, *[end] * (length - 1 - len(kept))]


def test_a_long_prompt_is_cut_and_the_loss_is_told(openai, caplog):
    with caplog.at_level(logging.WARNING, "ldm"):
        row = openai(["cat " * 75 + "and a lost café"])
    assert row.shape == (1, 77) and row[0, -1] == 49407
    assert "79 tokens and 75 fit" in caplog.text and "and a lost café" in caplog.text


def test_the_loss_is_told_in_a_few_words(openai, caplog):
    openai(["lost " * 5000])
    assert "5000 tokens and 75 fit" in caplog.text and len(caplog.messages[0]) < 300


def test_one_prompt_is_a_row_and_not_its_letters(openai):
    assert torch.equal(openai("a cat"), openai(["a cat"])) and openai(("a", "b")).shape == (2, 77)


@pytest.mark.parametrize("prompts", [3, None, b"a cat", ["a", 3], [["a"]], {"a"}, "\ud800"])
def test_what_is_no_text_has_no_ids(openai, prompts):
    with pytest.raises(InputError, match="prompts"):
        openai(prompts)


def test_a_prompt_that_fits_is_quiet(openai, caplog):
    openai(["cat " * 75])
    assert not caplog.text


def test_no_prompts_give_no_rows(openai):
    assert openai([]).shape == (0, 77)


def test_files_are_read_byte_for_byte(openai, tmp_path):
    write_tokenizer(tmp_path, openai)
    read = Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert read.vocab == openai.vocab and read.merges == openai.merges
    again = tmp_path / "again"
    write_tokenizer(again, read)
    for name in ("vocab.json", "merges.txt"):
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def test_unknown_pieces_become_the_end_token():
    tokenizer = Tokenizer({"a</w>": 0, START: 1, "<|endoftext|>": 2}, [])
    assert tokenizer.encode("a b") == [0, 2]


def test_pairs_are_joined_from_the_left():
    assert merged(("a", "a", "a"), {("a", "a"): 0}) == ("aa", "a")
    assert merged(("a", "b", "c", "a", "b"), {("a", "b"): 0}) == ("ab", "c", "ab")


def joined(pieces, pair):
    """Every occurrence of a pair, from the left, as one piece."""
    out, i = [], 0
    while i < len(pieces):
        width = 2 if pieces[i : i + 2] == pair else 1
        out.append("".join(pieces[i : i + width]))
        i += width
    return tuple(out)


def one_by_one(pieces, rank):
    """The same as it is defined, in quadratic time."""
    while known := [pair for pair in pairwise(pieces) if pair in rank]:
        pieces = joined(pieces, min(known, key=rank.get))
    return pieces


PAIRS = st.tuples(*[st.sampled_from(["a", "b", "c", "ab", "ba", "aa", "ca", "abc", "aab"])] * 2)


@given(st.text("abc", min_size=1, max_size=20), st.lists(PAIRS, max_size=20, unique=True))
def test_merging_is_joining_the_pair_of_lowest_rank_again_and_again(word, pairs):
    rank = {pair: i for i, pair in enumerate(pairs)}
    assert merged(tuple(word), rank) == one_by_one(tuple(word), rank)


def test_a_long_word_takes_no_time_and_has_the_same_pieces(openai):
    generator = torch.Generator().manual_seed(0)
    letters = [chr(97 + i) for i in torch.randint(26, (40000,), generator=generator)]
    rank = {pair: i for i, pair in enumerate(openai.merges)}
    begun = time.process_time()
    assert merged(letters[:400], rank) == one_by_one(tuple(letters[:400]), rank)
    merged(letters, rank)
    assert time.process_time() - begun < 5  # a quadratic loop takes minutes


@pytest.mark.parametrize(
    ("vocab", "merges"),
    [
        ("[" * 100_000, "#v\na b"),
        *(
            (f'{{"{START}": 1, "{END}": 2, "a": {i}}}', "#v\na b")
            for i in (-1, 2, 2.5, "true", "null", 2**70)
        ),
        ("{", "#v\na b"),
        ("[]", "#v\na b"),
        ('{"a": "x"}', "#v\na b"),
        ('{"a": 1}', "#v\na b"),
        ("{}", "#v\nabc"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, vocab, merges):
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(CheckpointError, match=r"vocab\.json.*again"):
        Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")


def test_missing_files_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
