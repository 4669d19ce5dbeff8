"""Learning a byte-pair vocabulary in which every known word is one token (Sennrich et al. 2016, alg. 1).

Words that were not in the corpus still have ids: they fall apart into smaller pieces, bytes at the last.
"""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ldm.clip.pairs import merged
from ldm.clip.tokenizer import END, START, byte_characters, vocabulary

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


def save_vocabulary(merges: Sequence[Pair], folder: Path, length: int) -> None:
    """The four files of a CLIP tokenizer folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    texts = {
        "vocab.json": vocabulary(merges),
        "special_tokens_map.json": {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END},
        "tokenizer_config.json": {
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": length,
            "tokenizer_class": "CLIPTokenizer",
        },
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
