"""CLIP's tokenizer: byte-pair encoding over cleaned, lower-cased text (Sennrich et al. 2016).

    text -> cleaned text -> words -> bytes of each word, one character a byte -> merged pairs -> ids

The ids are those of the official Stable Diffusion code: transformers' slow `CLIPTokenizer` with ftfy.
"""

import gzip
import json
from collections.abc import Callable, Container, Iterator, Sequence
from functools import cache, cached_property, lru_cache
from importlib import resources
from pathlib import Path

from ldm.clip.pairs import Pair, merged
from ldm.clip.words import Words
from ldm.errors import CheckpointError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class Tokenizer(Words):
    """Prompts to ids: `tokenizer(["a cat"])` -> int64 [b length], start, tokens, end, then padding.

    vocab   piece -> id. Pieces that end a word carry `</w>`.
    merges  pairs of pieces in the order in which they were learned, most frequent first.
    length  ids per prompt. What is longer is cut, and the logger "ldm" says what was lost.
    pad     the piece that fills up: `<|endoftext|>` for CLIP-L (the default), "!" for OpenCLIP.
    """

    specials = start, end = START, END
    unknown = END

    def __init__(self, vocab: dict[str, int], merges: Sequence[Pair], *, length: int = 77, pad: str = END):
        check_known(vocab, START, END, pad)
        ids = list(vocab.values())
        if not all(type(i) is int and 0 <= i < 2**31 for i in ids) or len(set(ids)) < len(ids):
            raise CheckpointError(
                "the vocabulary has ids that are negative, repeated or no whole numbers; "
                "copy it from the model again"
            )
        self.vocab, self.merges, self.length, self.pad = vocab, list(merges), length, pad

    @classmethod
    def openai(cls, *, length: int = 77, pad: str = END) -> "Tokenizer":
        """The tokenizer of every official model, from the vocabulary in this package (OpenAI, MIT)."""
        return OpenAI(length=length, pad=pad)

    @classmethod
    def from_files(cls, vocab: Path, merges: Path, *, length: int = 77, pad: str = END) -> "Tokenizer":
        """The tokenizer of a folder, from its `vocab.json` and `merges.txt`.

        Raises CheckpointError if either cannot be read as what it is called.
        """
        try:
            ids = json.loads(Path(vocab).read_text("utf-8"))
            lines = Path(merges).read_text("utf-8").strip().split("\n")[1:]
            pairs = [pair_of(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{vocab} and {merges} cannot be read as a CLIP vocabulary: {error}; copy them again"
            ) from error
        if not isinstance(ids, dict):
            raise CheckpointError(
                f"{vocab} must be one JSON object of piece: id; copy it from the model again"
            )
        if not pairs and len(ids) > len(vocabulary([])):
            raise CheckpointError(f"{merges} has no merges, but {vocab} has merged pieces; copy it again")
        try:
            return cls(ids, pairs, length=length, pad=pad)
        except CheckpointError as error:
            raise CheckpointError(f"{vocab}: {error}") from error

    def __len__(self) -> int:
        return len(self.vocab)

    def cut(self, part: str) -> Iterator[tuple[str, ...]]:
        """The pieces of each word: `"astronauts"` -> `("astronauts</w>",)`."""
        import regex

        # specials are taken out first, as the official code does: cleaning then sees what is between them
        if part in self.specials:
            yield (part,)
            return
        pattern = f"{regex.escape(START)}|{regex.escape(END)}|{WORD}"
        yield from map(self._pieces, regex.findall(pattern, clean(part), regex.IGNORECASE))

    def spelt(self, ids: Sequence[int]) -> str:
        """Ids of the vocabulary as one reads them."""
        return "".join(self._text[i] for i in ids).replace("</w>", " ").strip()

    @cached_property
    def _rank(self) -> dict[Pair, int]:
        return {pair: i for i, pair in enumerate(self.merges)}

    @cached_property
    def _pieces(self) -> Callable[[str], tuple[str, ...]]:
        return lru_cache(maxsize=2**16)(self._merge)

    def _merge(self, word: str) -> tuple[str, ...]:
        if word in (START, END):
            return (word,)
        chars = [byte_characters()[byte] for byte in word.encode("utf-8")]
        return merged([*chars[:-1], chars[-1] + "</w>"], self._rank)

    @cached_property
    def _text(self) -> dict[int, str]:
        """id -> readable piece."""
        byte_of = {character: byte for byte, character in byte_characters().items()}

        def readable(piece: str) -> str:
            stem = piece.removesuffix("</w>")
            if not all(character in byte_of for character in stem):
                return piece
            word = bytes(byte_of[character] for character in stem).decode("utf-8", "replace")
            return word + ("</w>" if piece.endswith("</w>") else "")

        return {i: readable(piece) for piece, i in self.vocab.items()}


class OpenAI(Tokenizer):
    """The tokenizer of every official model, whose vocabulary is unpacked when it is first asked for."""

    def __init__(self, *, length: int = 77, pad: str = END):
        self.length, self.pad = length, pad
        if pad not in (END, "!"):
            check_known(self.vocab, pad)

    def __len__(self) -> int:
        return 49408

    @cached_property
    def merges(self) -> list[Pair]:  # type: ignore[override]
        return official_merges()

    @cached_property
    def vocab(self) -> dict[str, int]:  # type: ignore[override]
        return vocabulary(self.merges)


def check_known(vocab: Container[str], *pieces: str) -> None:
    """Raises CheckpointError for pieces that a vocabulary has not."""
    for piece in pieces:
        if piece not in vocab:
            raise CheckpointError(
                f"the vocabulary has no piece {piece!r}, so it is not CLIP's; copy it again"
            )


@cache
def official_merges() -> list[Pair]:
    """The pairs that CLIP was trained with."""
    packed = resources.files("ldm.clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    # the file lists more merges than CLIP was trained with: 49408 ids less 512 bytes and 2 specials
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 49408 - 512 - 2 + 1]
    return [pair_of(line) for line in lines]


def clean(text: str) -> str:
    """Mend mojibake, entities and odd widths, fold white space, lower the case."""
    import ftfy
    import regex

    return regex.sub(r"\s+", " ", ftfy.fix_text(text)).strip().lower()


@cache
def byte_characters() -> dict[int, str]:
    """A printable character for each byte, so that pieces can be written in a text file."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def vocabulary(merges: Sequence[Pair]) -> dict[str, int]:
    """CLIP's order of ids: bytes, bytes that end a word, merges as learned, start, end."""
    bytes_ = list(byte_characters().values())
    pieces = [*bytes_, *(b + "</w>" for b in bytes_), *(a + b for a, b in merges), START, END]
    return {piece: i for i, piece in enumerate(pieces)}


def pair_of(line: str) -> Pair:
    """A line of a merges file."""
    left, right = line.split()
    return left, right
