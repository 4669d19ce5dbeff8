"""The ids are those of transformers' slow CLIPTokenizer with ftfy, on any text."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ldm.checkpoint.folder import open_tokenizer
from ldm.clip import Tokenizer
from ldm.family import Text
from tests.reference.peers import peer_tokenizer
from tests.tiny import DATA

DATA_FILE = json.loads((DATA / "tokenizer.json").read_text())
CASES = DATA_FILE["cases"]
START, END = 49406, 49407


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.openai()


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    return peer_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"] + "-" + case["category"])
def test_recorded_ids(ours, case):
    assert ours.encode(case["text"]) == case["ids"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_rows_are_start_ids_end_and_padding(ours, case):
    kept = case["ids"][:75]
    assert ours([case["text"]]).tolist() == [[START, *kept, END, *[END] * (75 - len(kept))]]


@pytest.mark.parametrize("case", [c for c in CASES if "padded_77" in c], ids=lambda case: case["id"])
@pytest.mark.parametrize("pad", ["eos_pad", "zero_pad"])
def test_recorded_padding(case, pad):
    tokenizer = Tokenizer.openai(pad="!" if pad == "zero_pad" else "<|endoftext|>")
    row = eval(case["padded_77"][pad], {"ids": case["ids"]})
    assert tokenizer([case["text"]]).tolist() == [row]


def test_a_changed_text_has_other_ids(ours):
    assert ours.encode("a cat") != ours.encode("a cart")


# Letters of many scripts, marks, symbols, joiners, specials in any case, entities and mojibake.
PIECES = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="abcxyz '’.,!?-_0123456789&;#", max_size=20),
    st.sampled_from(
        [
            "<|startoftext|>",
            "<|endoftext|>",
            "<|ENDOFTEXT|>",
            "&amp;",
            "&lt;",
            "&amp;amp;",
            "schÃ¶n",
            "â€œhiâ€\x9d",
            "'s",
            "'LL",
            "ﬁ",
            "ＡＢＣ",
            "e\u0301",
            "İ",
            "ß",
            "🏳️‍🌈",
            "👩🏽‍🚀",
            "猫",
            "ไทย",
            "\u200b",
            "\ufeff",
            "\u0000",
            "\u0085",
            "\u00a0",
            "\u3000",
            "\x1b[31m",
            "\r\n",
            "\u2028",
            "½",
            "x²",
            "Ⅷ",
            "١٢",
            "ǅ",
            "\ud7ff",
            "\ue000",
            "\U0010ffff",
        ]
    ),
)
TEXTS = st.lists(PIECES, max_size=8).map("".join) | st.lists(PIECES, max_size=8).map(" ".join)


@given(TEXTS)
@example("ẞ ÅNGSTRÖM ﷺ")
@example("a<|endoftext|>b <|startoftext|>")
@example("<|endof text|>")
def test_any_text_has_the_ids_of_transformers(ours, peer, text):
    assert ours.encode(text) == peer(text, add_special_tokens=False).input_ids


@given(TEXTS)
def test_any_row_is_that_of_transformers(ours, peer, text):
    row = peer(text, padding="max_length", max_length=77, truncation=True).input_ids
    assert ours([text]).tolist() == [row]


def test_a_written_vocabulary_is_read_as_the_same_tokenizer(ours, peer, tmp_path):
    peer.save_pretrained(tmp_path)
    read = open_tokenizer(tmp_path, Text())
    assert read.vocab == ours.vocab and read.merges == ours.merges and read.pad == ours.pad


@pytest.mark.parametrize("as_pairs", [False, True], ids=["merges as texts", "merges as pairs"])
def test_a_tokenizer_json_is_read_as_the_same_tokenizer(ours, tmp_path, as_pairs):
    merges = [list(pair) if as_pairs else " ".join(pair) for pair in ours.merges]
    model = {"type": "BPE", "vocab": ours.vocab, "merges": merges}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    read = open_tokenizer(tmp_path, Text())
    assert read.vocab == ours.vocab and read.merges == ours.merges
