"""Tokens that are added to a model: textual inversion (Gal et al. 2023).

A token is a word of its own with vectors of its own in the place of a table's rows; the weights stay.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm.adapters import Adapted
from ldm.checkpoint import read_embedding
from ldm.checkpoint.values import narrowed
from ldm.checks import shown, texts
from ldm.errors import InputError
from ldm.model import Model


class Taught(Adapted):
    """A model that tokens can be added to."""

    def load_textual_inversion(self, source: str | Path, token: str | None = None) -> str:
        """Add the token of a file, beside those that are there; returns it.

        source  .safetensors, .pt or .bin of diffusers, AUTOMATIC1111 or, for SDXL, of both
        token   what stands for it in prompts; None: what the file says; AUTOMATIC1111's and SDXL's files do
                not say it, and the token is what they are called

        A prompt has the token wherever these characters stand in it, before anything is lower-cased: "<cat>"
        in "a <cat>s", "sks-cat" in "a sks-cat.", but not in "a SKS-cat". Of n vectors it takes the room of n
        tokens. Prompts without it are what they were, bit for bit. `ldm.save` writes the model without it.
        Not while another thread samples. Raises CheckpointError for a file that cannot be read, or is of
        another model; InputError for a token that is there, or part of the vocabulary.
        """
        found = read_embedding(source, self.family)
        token = found.token if token is None else token
        add_token(self, token, found.vectors)
        return token

    def unload_textual_inversion(self, token: str | None = None) -> None:
        """Take a token away, or all of them: all is again as it was. Raises InputError for an unknown one."""
        known = added_tokens(self)
        if token is not None and token not in known:
            raise InputError(f"no token {shown(token)} was added; there are {', '.join(known) or 'none'}")
        for gone in known if token is None else [token]:
            remove_token(self, gone)


def added_tokens(model: Model) -> list[str]:
    """The tokens that were added to a model."""
    return list(model.tokenizers[0].added) if model.tokenizers else []


def add_token(model: Model, token: str, vectors: Sequence[Tensor], *, as_they_are: bool = False) -> None:
    """Add a token with its vectors [n width] for each text encoder.

    as_they_are  keep their dtype, else they get that of the encoder's table
    Raises InputError for a token that cannot be one; CheckpointError for values beyond the table's dtype.
    """
    check_token(model, token)
    tables = [encoder.tokens for encoder in model.text_encoders]
    placed = [
        own.to(table.weight.device)
        if as_they_are
        else narrowed(own, table.weight.dtype, token).to(table.weight.device)
        for own, table in zip(vectors, tables, strict=True)
    ]
    ids = [table.add(own) for own, table in zip(placed, tables, strict=True)]
    model.tokenizers = [old.adding(token, own) for old, own in zip(model.tokenizers, ids, strict=True)]


def remove_token(model: Model, token: str) -> None:
    """Take an added token away."""
    for encoder, tokenizer in zip(model.text_encoders, model.tokenizers, strict=True):
        encoder.tokens.remove(tokenizer.added[token][0])
    model.tokenizers = [tokenizer.without(token) for tokenizer in model.tokenizers]


def check_token(model: Model, token: str) -> None:
    """Raises InputError for what can be no new token of a model."""
    (token,) = texts("token", [token])
    if not token or token.strip() != token:
        raise InputError(f"token {shown(token)} must be a text that neither begins nor ends with a space")
    for tokenizer in model.tokenizers:
        if token in tokenizer.added:
            raise InputError(f"token {shown(token)} was added before; unload that, or give another token")
        if token in tokenizer.vocab or f"{token}</w>" in tokenizer.vocab:
            raise InputError(
                f"token {shown(token)} is part of the vocabulary, and prompts with it would change; "
                "give another token, such as <cat>"
            )
