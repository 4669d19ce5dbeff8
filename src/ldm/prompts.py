"""Prompts whose words have weights, of any length: "attention/emphasis" of AUTOMATIC1111's web UI.

    (a) 1.1    ((a)) 1.21    (a:1.3) 1.3    [a] 1/1.1    \\( \\) \\[ \\] \\\\ the characters themselves

A prompt is cut into chunks of what an encoder takes; each is encoded alone, and their states z [m c] stand
side by side. A token's weight w multiplies its state, and the chunk gets its mean back:

    z' = w z · mean(z) / mean(w z)
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ldm.checks import shown, texts
from ldm.clip import Tokenizer, WordPiece, Words
from ldm.clip.tokenizer import byte_characters
from ldm.conditioning import encode_ids
from ldm.errors import CheckpointError, InputError

BRACKET = 1.1  # the weight of a pair without a number
MOST = 100.0
BREAK = ("BREAK", -1.0)  # a new chunk begins; no text has a negative weight
MARK = re.compile(r"\\(?P<plain>[\\()\[\]])|(?P<close>(?::\s*(?P<number>[+-]?[.\d]+)\s*)?\))|[(\[\]]")


def weighted(text: str) -> list[tuple[str, float]]:
    """The pieces of a prompt, and the weight of each: `"a (red:1.3) cat"` -> a 1, red 1.3, cat 1.

    Weights of nested brackets multiply; round and square ones may cross. What is never closed counts to the
    end; what was never opened is text, as is a backslash before any other character. Neighbours of one weight
    are joined, and there is always a piece, if an empty one. The word BREAK begins a new chunk, in brackets
    too, and is the piece ("BREAK", -1.0); to the encoders, which ignore case, "Break" is the same word.
    Raises InputError for a weight that is no number from 0 to 100.
    """
    pieces: list[tuple[str, float]] = []
    for weight, group in groupby(spans(text), itemgetter(1)):
        same = list(group)
        pieces += same if weight < 0 else [("".join(part for part, _ in same), weight)]
    return pieces or [("", 1.0)]


def chunks(tokenizer: Words, text: str, weights: bool = True) -> tuple[Tensor, Tensor]:
    """A prompt of any length as ids and their weights, int64 and float32 [n m], m = tokenizer.length.

    Each chunk has up to m - 2 tokens, and start, end and padding, which weigh 1; BREAK ends a chunk early, if
    need be an empty one. Pieces become tokens one by one, so that a word ends where its weight does. The
    vectors of an added token stay together: where they do not fit any more a new chunk begins.
    weights  False: brackets, backslashes and BREAK are text like any other, and all weights are 1
    Raises InputError as `weighted` does.
    """
    rows = in_chunks(tokenizer, text, weights)
    ids = [tokenizer.fit([token for token, _ in row]) for row in rows]
    beside = [[1.0, *(w for _, w in row), *[1.0] * (tokenizer.length - 1 - len(row))] for row in rows]
    return torch.tensor(ids, device="cpu"), torch.tensor(beside, dtype=torch.float32, device="cpu")


def in_chunks(tokenizer: Words, text: str, weights: bool = True) -> list[list[tuple[int, float]]]:
    """The ids of a prompt and their weights, chunk by chunk, without start, end and padding; as `chunks`."""
    rows: list[list[tuple[int, float]]] = [[]]
    for part, weight in pieces_of(text, weights):
        if weight < 0:
            rows.append([])
            continue
        for ids in indivisible(tokenizer, part):
            if len(rows[-1]) + len(ids) > tokenizer.length - 2:
                rows.append([])
            rows[-1] += [(token, weight) for token in ids]
    return rows if rows[-1] else rows[:-1] or [[]]


def indivisible(tokenizer: Words, text: str) -> Iterator[tuple[int, ...]]:
    """The ids of a text: one by one, those of an added token together."""
    for word in tokenizer.words(text):
        yield from [word.ids] if word.added else zip(word.ids, strict=True)


def pieces_of(text: str, weights: bool) -> list[tuple[str, float]]:
    """The pieces of a prompt as `weighted` has them, or one, if it has no weights."""
    return weighted(text) if weights else [(text, 1.0)]


def encode_weighted(
    tokenizers: Sequence[Words],
    encoders: Sequence[Any],
    prompts: str | Sequence[str],
    weights: bool = True,
    least: int = 1,
    skip: int = 0,
    most: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Hidden states of prompts of any length with weights, [b n·m c'], and pooled text, [b c''] or None.

    Prompts of fewer than n chunks are filled up with the empty text's. The means are those of one prompt,
    chunk and encoder. Where all weights are 1 the states are the encoder's, bit for bit; where a mean is 0
    they are w z. The pooled text is that of the first chunk, which weights do not change.
    weights  as in `chunks`; skip as in `encode_ids`
    least    chunks, however short the prompts; most: those after them are left out
    Raises InputError as `weighted` does; CheckpointError as `encode_ids` does, or if the tokenizers disagree
    on how many chunks there are.
    """
    prompts = texts("prompts", prompts)
    rows = [
        [tuple(x[:most] for x in chunks(tokenizer, prompt, weights)) for prompt in prompts]
        for tokenizer in tokenizers
    ]
    counts = [[len(ids) for ids, _ in row] for row in rows]
    if any(count != counts[0] for count in counts):
        raise CheckpointError(f"the tokenizers make {counts} chunks; they belong to different models")
    hidden, pooled = [], None
    for tokenizer, encoder, row in zip(tokenizers, encoders, rows, strict=True):
        ids, weight = (
            torch.stack(
                [torch.cat([x, empty.expand(max(least, *counts[0]) - len(x), -1)]) for x in own], dim=1
            )
            for own, empty in zip(zip(*row, strict=True), chunks(tokenizer, ""), strict=True)
        )  # [n b m]
        # chunk by chunk, so that sums round as they do where there is one
        states, pools = zip(*(encode_ids(now, encoder, skip) for now in ids), strict=True)
        hidden.append(torch.cat([emphasised(*both) for both in zip(states, weight, strict=True)], dim=1))
        pooled = pooled if pools[0] is None else pools[0]
    return torch.cat(hidden, dim=-1), pooled


def most_chunks(tokenizers: Sequence[Words], prompts: Sequence[Any], weights: bool) -> int:
    """How many chunks the longest of some prompts has; those that are no texts have none."""
    said = {prompt for prompt in prompts if isinstance(prompt, str)}
    return max(
        (len(chunks(tokenizer, text, weights)[0]) for tokenizer in tokenizers for text in said), default=1
    )


def by_length(
    tokenizers: Sequence[Words], said: Sequence[tuple[Any, ...]], weights: bool
) -> dict[int, list[int]]:
    """How many chunks the longest text of a row has, to the rows that have as many; each row is cut once."""
    lengths = {row: most_chunks(tokenizers, row, weights) for row in set(said)}
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(said):
        groups.setdefault(lengths[row], []).append(i)
    return groups


def tokens(text: str, tokenizer: Words | None = None) -> list[str]:
    """The tokens of a text, brackets and all, as one reads them: `"embeddings"` -> `["embe", "ddings"]`.

    They do not tell where words end. A token that is part of a character's bytes is shown with �, and an
    added one as often as it has vectors.
    tokenizer  `pipe.tokenizers[0]`; None: that of every official Stable Diffusion
    Raises InputError for what is no text.
    """
    (text,) = texts("text", [text])
    tokenizer = tokenizer or Tokenizer.openai()
    return [
        piece if word.added else readable(tokenizer, [piece])
        for word in tokenizer.words(text)
        for piece in word.pieces
    ]


def spelled(text: str, tokenizer: Words) -> list[tuple[str, int]]:
    """The words of a text, and how many tokens each is: `"a corgi!"` -> a 1, corgi 2, ! 1."""
    return [
        (word.pieces[0] if word.added else readable(tokenizer, word.pieces), len(word.ids))
        for word in tokenizer.words(text)
    ]


def readable(tokenizer: Words, pieces: Sequence[str]) -> str:
    """Neighbouring pieces as one reads them."""
    if isinstance(tokenizer, WordPiece):
        return "".join(piece.removeprefix("##") for piece in pieces)
    byte_of = {character: byte for byte, character in byte_characters().items()}
    stems = "".join(piece.removesuffix("</w>") for piece in pieces)
    return bytes(byte_of[character] for character in stems).decode("utf-8", "replace")


def spans(text: str) -> Iterator[tuple[str, float]]:
    """The stretches of a prompt between its marks, none of them empty, with their weights."""
    marks = list(MARK.finditer(text))
    numbers = given(marks)
    rounds = [(0, 1.0)]  # at each depth: how many have no number, and the product of the numbers
    squares = at = 0
    for mark in marks:
        yield from cut(text[at : mark.start()], *rounds[-1], squares)
        (power, factor), at = rounds[-1], mark.end()
        if mark[0] == "(":
            number = numbers.get(mark.start())
            rounds.append((power + 1, factor) if number is None else (power, factor * number))
        elif mark["close"] and len(rounds) > 1:
            rounds.pop()
        elif mark[0] == "[":
            squares += 1
        elif mark[0] == "]" and squares:
            squares -= 1
        else:
            yield from cut(mark["plain"] or mark[0], power, factor, squares)
    yield from cut(text[at:], *rounds[-1], squares)


def given(marks: Sequence[re.Match[str]]) -> dict[int, float | None]:
    """Where round brackets that are closed open, and their number."""
    opened: list[int] = []
    numbers: dict[int, float | None] = {}
    for mark in marks:
        if mark[0] == "(":
            opened.append(mark.start())
        elif mark["close"] and opened:
            said = mark["number"]
            try:
                numbers[opened.pop()] = float(said) if said else None
            except ValueError:
                raise InputError(f"the weight {shown(said)} must be a number such as 1.3") from None
    return numbers


def cut(text: str, power: int, factor: float, squares: int) -> Iterator[tuple[str, float]]:
    """A stretch of text, cut where it says BREAK, and its weight: factor · 1.1^(power - squares)."""
    weight = factor * BRACKET ** min(power - squares, 7000)  # floats end at 1.1^7447
    *before, last = re.split(r"\bBREAK\b\s*", text)
    for i, part in enumerate([*map(str.rstrip, before), last]):
        if i:
            yield BREAK
        if part and not 0 <= weight <= MOST:
            raise InputError(f"the weight of {shown(part)} is {weight:.6g}; make it one from 0 to {MOST:g}")
        if part:
            yield part, weight


def emphasised(z: Tensor, weight: Tensor) -> Tensor:
    """z' = w z · mean(z) / mean(w z) of each row. z [b m c], weight [b m]"""
    weight = weight.to(z.device)
    x = z.to(torch.promote_types(z.dtype, torch.float32))  # a mean of half numbers would be rough
    weighed = x * rearrange(weight, "b m -> b m 1")
    before, after = x.mean(dim=(1, 2)), weighed.mean(dim=(1, 2))
    as_it_is = (weight == 1).all(dim=1) | (before == 0) | (after == 0)
    ratio = torch.where(as_it_is, 1.0, before / after)
    return (weighed * rearrange(ratio, "b -> b 1 1")).to(z.dtype)
