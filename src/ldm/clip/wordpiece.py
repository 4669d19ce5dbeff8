"""BERT's tokenizer: words, cut into the longest pieces that are known (Wu et al. 2016; Devlin et al. 2019).

    text -> lower case -> words and punctuation, without accents -> pieces -> ids

The ids are those of bert-base-uncased, as transformers' slow `BertTokenizer` gives them.
"""

import lzma
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path

from ldm.clip.words import Words
from ldm.errors import CheckpointError

PAD, UNKNOWN, START, END, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 100  # characters of a word; longer ones are unknown
IDEOGRAPHS = (  # each is a word of its own
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPiece(Words):
    """Prompts to ids: `tokenizer(["a cat"])` -> int64 [b length], start, tokens, end, then padding.

    vocab   piece -> id. Pieces that go on with a word begin with ##.
    length  ids per prompt. What is longer is cut, and the logger "ldm" says what was lost.
    """

    specials, unknown = SPECIALS, UNKNOWN
    start, end, pad = START, END, PAD

    def __init__(self, vocab: dict[str, int], *, length: int = 77):
        for piece in SPECIALS:
            if piece not in vocab:
                raise CheckpointError(
                    f"the vocabulary has no piece {piece!r}, so it is not BERT's; copy it again"
                )
        self.vocab, self.length = vocab, length
        self._cut = lru_cache(maxsize=2**16)(self._longest)

    @classmethod
    def bert(cls, *, length: int = 77) -> "WordPiece":
        """The tokenizer of LDM's text-to-image, from the vocabulary in this package (Google, Apache-2.0)."""
        packed = resources.files("ldm.clip").joinpath("bert_base_uncased_vocab.txt.xz").read_bytes()
        return cls(numbered(lzma.decompress(packed).decode("utf-8")), length=length)

    @classmethod
    def from_file(cls, path: Path, *, length: int = 77) -> "WordPiece":
        """The tokenizer of a folder, from its `vocab.txt`. Raises CheckpointError if it is none."""
        try:
            return cls(numbered(path.read_text("utf-8")), length=length)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as BERT's vocabulary: {error}") from error

    def __len__(self) -> int:
        """How many pieces there are."""
        return len(self.vocab)

    def cut(self, part: str) -> Iterator[tuple[str, ...]]:
        """The pieces of each word: `"embeddings"` -> `("em", "##bed", "##ding", "##s")`."""
        yield from map(self._cut, (part,) if part in SPECIALS else words(part))

    def spelt(self, ids: Sequence[int]) -> str:
        """Ids of the vocabulary as one reads them."""
        known = {i: piece for piece, i in self.vocab.items()}
        return " ".join(known[i] for i in ids).replace(" ##", "")

    def _longest(self, word: str) -> tuple[str, ...]:
        """A word as the longest known pieces, from the left; unknown if no piece fits somewhere."""
        if word in SPECIALS:
            return (word,)
        if len(word) > LONGEST:
            return (UNKNOWN,)
        out, begin = [], 0
        while begin < len(word):
            prefix = "##" if begin else ""
            ends = range(len(word), begin, -1)
            end = next((end for end in ends if prefix + word[begin:end] in self.vocab), None)
            if end is None:
                return (UNKNOWN,)
            out.append(prefix + word[begin:end])
            begin = end
        return tuple(out)


def words(text: str) -> Iterator[str]:
    """The words of a text, in lower case and without accents; punctuation, and each ideograph, alone."""
    small = "".join(c.lower() for c in text)  # one by one, so that no Σ is a final one
    for word in unicodedata.normalize("NFC", spaced(small)).split():
        plain = unicodedata.normalize("NFD", word)
        yield from split("".join(c for c in plain if unicodedata.category(c) != "Mn"))


def spaced(text: str) -> str:
    """A text without control characters, with spaces for white space and around ideographs."""
    out = []
    for c in text:
        if c in "\t\n\r" or unicodedata.category(c) == "Zs":
            out.append(" ")
        elif any(low <= ord(c) <= high for low, high in IDEOGRAPHS):
            out.append(f" {c} ")
        elif c not in "\0\ufffd" and not unicodedata.category(c).startswith("C"):
            out.append(c)
    return "".join(out)


def split(word: str) -> Iterator[str]:
    """A word without its punctuation, and each mark of that."""
    begin = 0
    for i, c in enumerate(word):
        if is_mark(c):
            yield from filter(None, (word[begin:i], c))
            begin = i + 1
    yield from filter(None, (word[begin:],))


def is_mark(c: str) -> bool:
    """Whether a character is punctuation, or one of ASCII's that is neither letter nor digit."""
    return unicodedata.category(c).startswith("P") or (c.isascii() and c.isprintable() and not c.isalnum())


def numbered(text: str) -> dict[str, int]:
    """The pieces of a vocabulary, one a line, to their line numbers."""
    return {line.rstrip("\r"): i for i, line in enumerate(text.rstrip("\n").split("\n"))}
