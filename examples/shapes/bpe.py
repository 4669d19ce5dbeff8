"""Learning a byte-pair vocabulary in which every known word is one token (Sennrich et al. 2016, alg. 1).

Words that were not in the corpus still have ids: they fall apart into smaller pieces, bytes at the last.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from ldm.clip.pairs import merged
from ldm.clip.tokenizer import byte_characters

Pair = tuple[str, str]


def learn_merges(words: Sequence[str]) -> list[Pair]:
    """Merge the most frequent pair, the first in the alphabet among equals, until every word is one piece."""
    chars = byte_characters()
    rows = [tuple(chars[byte] for byte in word.encode("utf-8")) for word in sorted(set(words))]
    rows = [(*row[:-1], row[-1] + "</w>") for row in rows]
    merges: list[Pair] = []
    while True:
        counts = Counter(pair for row in rows for pair in pairwise(row))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        rows = [merged(row, {best: 0}) for row in rows]
