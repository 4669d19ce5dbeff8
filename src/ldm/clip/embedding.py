"""The vectors of tokens: those of a model's table, and those of tokens added to it (Gal et al. 2023, sec. 3).

    x_i = table[id_i]                   for ids of the table
          added[first][id_i - first]    for ids of an added token, which are first, first + 1, …

So the table is never copied to have more rows, and what is trained is a parameter of its own.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

ADDED = "tokens.added."  # how the names of a text encoder's parameters begin that are of added tokens


class TokenEmbedding(nn.Embedding):
    """ids [b n] -> vectors [b n width], in the table's dtype.

    What is added is no part of a model's files. It changes no vector of the table, and no id that was given
    is given again, so that tokenizers which know a token that is gone are found out.
    """

    def __init__(self, vocab: int, width: int):
        super().__init__(vocab, width)
        self.added = nn.ParameterDict()  # first id -> vectors [n width]
        self.free = vocab  # the first id that was never given

    def forward(self, ids: Tensor) -> Tensor:
        if not self.added:
            return super().forward(ids)
        x = super().forward(ids.clamp(max=self.num_embeddings - 1))
        for first, vectors in self.added.items():
            at = ids - int(first)
            own = rearrange((at >= 0) & (at < len(vectors)), "... -> ... 1")
            x = torch.where(own, F.embedding(at.clamp(0, len(vectors) - 1), vectors).to(x.dtype), x)
        return x

    def add(self, vectors: Tensor) -> range:
        """Add the vectors [n width] of a token, as they are; returns their ids."""
        ids = range(self.free, self.free + len(vectors))
        self.added[str(ids[0])] = nn.Parameter(vectors, requires_grad=False)
        self.free = ids.stop
        return ids

    def remove(self, first: int) -> None:
        """Take the token away whose first id this is, if it is there."""
        if str(first) in self.added:
            del self.added[str(first)]

    def knows(self, ids: Tensor) -> bool:
        """Whether each of the ids has a vector."""
        known = ids < self.num_embeddings
        for first, vectors in self.added.items():
            known |= (ids >= int(first)) & (ids < int(first) + len(vectors))
        return bool(known.all())
