"""Textual inversion: the vectors of a new token are trained, and nothing else (Gal et al. 2023, eq. 2).

    v* = argmin over v of  E |eps - unet(x_t, t, text("a photo of <token>"; v))|²

They stand beside the table of each text encoder and not in it, so that no gradient or decay reaches that.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint import Embedding, write_embedding
from ldm.checkpoint.inversion import check_hears, most_vectors
from ldm.checks import shown, texts, whole
from ldm.clip import Words
from ldm.clip.embedding import ADDED, TokenEmbedding
from ldm.errors import InputError
from ldm.inversions import add_token, added_tokens, remove_token
from ldm.model import Model
from ldm.training.data import Batch
from ldm.training.folders import Prompt, entries
from ldm.training.settings import TARS, InversionSettings


class TextualInversion:
    """A token to be taught: `inversion.parameters()` to an optimiser, then `inversion.save(path)`.

    Prompts know it from now on, as after `pipe.load_textual_inversion`; `inversion.remove()` takes it away.
    All weights of the model are frozen until then, but not LoRAs and other tokens that are being trained. The
    vectors are float32 whatever the model is.

    token      what stands for it in prompts, such as <cat>
    init       words whose vectors it begins with, in turn if there are more vectors than they have tokens;
               None: normal random numbers of the mean and deviation of each column of the table
    vectors    1 to the tokens that a prompt has room for
    generator  of what is drawn without init
    Raises InputError for a token that is there or part of the vocabulary, for words of more tokens than
    vectors, and for a model that hears no words.
    """

    def __init__(
        self,
        model: Model,
        token: str,
        init: str | None = None,
        vectors: int = 1,
        *,
        generator: torch.Generator | None = None,
    ):
        check_hears(model.family)
        count = whole("vectors", vectors, most_vectors(model.family))
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        pairs = list(zip(model.tokenizers, model.text_encoders, strict=True))
        begun = [
            drawn(encoder.tokens, count, generator)
            if init is None
            else said(encoder.tokens, tokenizer, init, count)
            for tokenizer, encoder in pairs
        ]
        add_token(model, token, begun, as_they_are=True)
        self.model, self.token = model, token
        self.vectors: list[nn.Parameter] = [
            encoder.tokens.added[str(tokenizer.added[token][0])]
            for tokenizer, encoder in zip(model.tokenizers, model.text_encoders, strict=True)
        ]
        self.frozen = [weight for weight in weights(model) if weight.requires_grad]
        for weight in self.frozen:
            weight.requires_grad_(False)
        for own in self.vectors:
            own.requires_grad_(True)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained: vectors [n width] of each text encoder."""
        yield from self.vectors

    def save(self, path: str | Path, form: str = "diffusers", dtype: torch.dtype = torch.float32) -> None:
        """Write them to a .safetensors file that `pipe.load_textual_inversion` loads.

        form  "diffusers"; "a1111", where the token is what the file is called; SDXL's, which both programs
              read, is one for both, and the token is what it is called
        Raises InputError; CheckpointError, leaving nothing behind, if it cannot be written.
        """
        now = [own.detach().to("cpu", dtype) for own in self.vectors]
        write_embedding(path, self.model.family, Embedding(self.token, now), form)

    def remove(self) -> None:
        """Take the token away; weights that were frozen for it require gradients again."""
        if self.token in added_tokens(self.model):
            remove_token(self.model, self.token)
        for weight in self.frozen:
            weight.requires_grad_(True)
        self.frozen = []


def check_said(settings: InversionSettings) -> None:
    """Raises InputError for a template without a place for the word, and captions of a folder without it."""
    if settings.template.count("{}") != 1:
        raise InputError(f"template {shown(settings.template)} must have one {{}}, where the word comes")
    if not settings.data.path.endswith(TARS):
        for entry in entries(settings.data.path):
            prompt_with(settings, entry.prompt, entry.name)


def saying(settings: InversionSettings, batch: Batch) -> Batch:
    """A batch whose prompts have the word. Raises InputError for captions that have it not."""
    told = [prompt_with(settings, *each) for each in zip(batch.prompts, batch.names, strict=True)]
    return batch._replace(prompts=told)


def prompt_with(settings: InversionSettings, prompt: Prompt, name: str) -> Prompt:
    """What an image is told of the word. Raises InputError."""
    if prompt is None:
        return settings.template.replace("{}", settings.token)
    if settings.token not in str(prompt):
        raise InputError(
            f"the caption of {name}, {shown(prompt)}, lacks {shown(settings.token)}, of which nothing would "
            "be learned; put it in, or leave all captions away"
        )
    return prompt


def weights(model: Model) -> Iterator[nn.Parameter]:
    """A model's own weights: neither a LoRA's that is being trained nor vectors of added tokens."""
    for network in model.networks():
        for name, weight in network.named_parameters():
            lora = ".parametrizations." in name and not name.endswith(".original")
            if not lora and not name.startswith(ADDED):
                yield weight


@torch.no_grad()
def said(table: TokenEmbedding, tokenizer: Words, init: str, count: int) -> Tensor:
    """The vectors of words in turn, float32 [count width]."""
    (init,) = texts("init", [init])
    ids = tokenizer.encode(init)
    if not 0 < len(ids) <= count or tokenizer.vocab[tokenizer.unknown] in ids:
        raise InputError(
            f"init {shown(init)} is {len(ids)} tokens, for {count} vectors; give words that are known, of 1 "
            f"to {count} tokens, or more vectors"
        )
    turns = [ids[i % len(ids)] for i in range(count)]
    return table(torch.tensor(turns, device=table.weight.device)).float()


@torch.no_grad()
def drawn(table: TokenEmbedding, count: int, generator: torch.Generator) -> Tensor:
    """Vectors such as the table's, float32 [count width]."""
    z = torch.empty(count, table.embedding_dim, dtype=torch.float32, device="cpu")
    z.normal_(generator=generator)
    std, mean = torch.std_mean(table.weight.float(), dim=0)
    return mean + std * z.to(mean.device)
