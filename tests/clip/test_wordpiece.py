"""BERT's tokenizer against transformers' slow one, and its laws."""

import lzma
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer

from ldm.clip import WordPiece
from ldm.errors import CheckpointError, InputError

OURS = WordPiece.bert()
CASES = [
    "a cat", "", "Émile Zola's café, naïve!", "  spaces\t\n tabs ", "日本語のテスト 中文", "ΑΣ ΣΑΣ.",
    "İstanbul", "[CLS] hi [sep] [SEP] [MASK]x", "x" * 150, "emoji 😀 hi", "don't stop—ever…",
    "\u200b zero\ufeff",
    "한국어", "100% $5 ^_^ `x` ~|", "Straße GROẞ", "ﬁ ligature", "\x00\x01ab\x7f", "à̧́",
    "mixed中a文b", "٣٤ १२ ㍿ ½",
    "\u2028line\u2029", "\u00a0nbsp\u3000wide", "an astronaut riding a horse, photorealistic " * 12,
]  # fmt: skip


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizer:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    packed = resources.files("ldm.clip").joinpath("bert_base_uncased_vocab.txt.xz").read_bytes()
    path.write_bytes(lzma.decompress(packed))
    return BertTokenizer(str(path))


def ids(theirs: BertTokenizer, text: str) -> list[int]:
    return theirs(text, truncation=True, max_length=77, padding="max_length")["input_ids"]


def test_the_vocabulary_is_whole():
    assert len(OURS.vocab) == 30_522 and OURS.vocab["[PAD]"] == 0 and OURS.vocab["[CLS]"] == 101


@pytest.mark.parametrize("text", CASES)
def test_ids_are_those_of_transformers(theirs, text: str):
    assert OURS([text])[0].tolist() == ids(theirs, text)


ALPHABET = st.one_of(
    st.characters(max_codepoint=0x24F),
    st.sampled_from("ΣσςİıßẞŒﬁ中文字にほん한글عربהעבद्र́̈ـ–—“”’…😀👍🏽\u200d\u00ad\ufffd\t\n \u3000[]SEPCLS"),
    st.characters(codec="utf-8"),
)


@given(text=st.text(ALPHABET, max_size=40))
def test_any_text_has_the_ids_of_transformers(theirs, text: str):
    assert OURS([text])[0].tolist() == ids(theirs, text)


def test_what_does_not_fit_is_cut_and_told(caplog):
    found = OURS(["red " * 80])[0].tolist()
    assert len(found) == 77 and found[-1] == OURS.vocab["[SEP]"] and found[75] == OURS.vocab["red"]
    assert "80 tokens and 75 fit" in caplog.text and "red red red red red" in caplog.text


def test_what_is_no_vocabulary_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\na\n")
    with pytest.raises(CheckpointError, match=r"no piece '\[UNK\]'"):
        WordPiece.from_file(tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        WordPiece.from_file(tmp_path / "none.txt")
    with pytest.raises(InputError, match="prompts"):
        OURS(3)
