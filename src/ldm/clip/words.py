"""What all tokenizers do alike, and the tokens that are added to one (Gal et al. 2023, sec. 3).

    text -> stretches between special and added tokens, and these -> words -> pieces -> ids

An added token is in no vocabulary: it has ids of its own, one for each vector of its embedding.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import groupby
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ldm.checks import texts

Self = TypeVar("Self", bound="Words")
log = logging.getLogger("ldm")


class Word(NamedTuple):
    """A word of a text."""

    pieces: tuple[str, ...]  # of an added token the token itself, as often as it has vectors
    ids: tuple[int, ...]  # one of each piece
    added: bool = False


class Words(ABC):
    """Prompts to ids: `tokenizer(["a cat"])` -> int64 [b length], start, tokens, end, then padding."""

    vocab: dict[str, int]  # piece -> id
    length: int  # ids of a prompt; what is longer is cut, and the logger "ldm" says what was lost
    specials: tuple[str, ...]  # pieces that may stand in a text
    start: str
    end: str
    pad: str
    unknown: str  # the piece that stands for those that the vocabulary has not
    added: Mapping[str, tuple[int, ...]] = MappingProxyType({})  # token -> its ids

    @abstractmethod
    def cut(self, part: str) -> Iterator[tuple[str, ...]]:
        """The pieces of each word of a special token, or of a text without any."""

    @abstractmethod
    def spelt(self, ids: Sequence[int]) -> str:
        """Ids of the vocabulary as one reads them."""

    def __call__(self, prompts: str | Sequence[str]) -> Tensor:
        """One or several prompts, a str or a list of str -> int64 [b length]. Raises InputError."""
        rows = [self.fit(self.encode(prompt)) for prompt in texts("prompts", prompts)]
        return torch.tensor(rows, dtype=torch.long, device="cpu").reshape(len(rows), self.length)

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length, without start, end and padding."""
        return [i for word in self.words(text) for i in word.ids]

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, one of each id; see `Word`."""
        return [piece for word in self.words(text) for piece in word.pieces]

    def words(self, text: str) -> Iterator[Word]:
        """The words of a text in order."""
        unknown = self.vocab[self.unknown]
        for part in self.parts(text):
            if ids := self.added.get(part):
                yield Word((part,) * len(ids), ids, added=True)
                continue
            for pieces in self.cut(part):
                yield Word(pieces, tuple(self.vocab.get(piece, unknown) for piece in pieces))

    def parts(self, text: str) -> list[str]:
        """A text cut at its special and added tokens; where two begin, the longer one stands."""
        tokens = sorted((*self.specials, *self.added), key=len, reverse=True)
        return [part for part in re.split(f"({'|'.join(map(re.escape, tokens))})", text) if part]

    def fit(self, ids: list[int]) -> list[int]:
        """`ids` between start and end, cut or padded to `length`."""
        room = self.length - 2
        if len(ids) > room:
            warn_lost(len(ids), room, self.read(ids[room:]))
        ids = [self.vocab[self.start], *ids[:room], self.vocab[self.end]]
        return ids + [self.vocab[self.pad]] * (self.length - len(ids))

    def read(self, ids: Sequence[int]) -> str:
        """Ids as one reads them."""
        tokens = {i: token for token, own in self.added.items() for i in own}
        runs = groupby(ids, tokens.get)
        return " ".join(self.spelt(list(run)) if token is None else token for token, run in runs)

    def adding(self: Self, token: str, ids: Sequence[int]) -> Self:
        """The tokenizer that knows one token more.

        The token is found in the raw text as it is written, in that case, before anything is cleaned or
        lower-cased, inside longer words too: with "sks-cat" the text "sks-cats" is that and an "s".
        """
        other = copy(self)
        other.added = {**self.added, token: tuple(ids)}
        return other

    def without(self: Self, token: str) -> Self:
        """The tokenizer that knows one added token less."""
        other = copy(self)
        other.added = {known: ids for known, ids in self.added.items() if known != token}
        return other


def warn_lost(tokens: int, room: int, lost: str) -> None:
    """Tell the logger "ldm" what of a prompt did not fit."""
    lost = lost if len(lost) <= 200 else f"{lost[:200]}…"
    log.warning("the prompt has %d tokens and %d fit; lost: %r", tokens, room, lost)
