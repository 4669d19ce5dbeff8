"""Networks that begin anew: a model of a family from nothing, or some networks of one that is there.

The last convolution of every residual block, the projection out of every transformer and the UNet's last
convolution begin at 0: each block is at first the identity, and the UNet says 0 (Ho et al. 2020's code).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ldm.checkpoint.plan import usual_tokenizer
from ldm.checks import nearest
from ldm.clip import BERT, BERTConfig, ClassConfig, ClassEmbedder, TextEncoder
from ldm.errors import InputError
from ldm.family import Family, Text
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from ldm.vae import VAE

SILENT = ("conv2", "proj_out", "conv_out")  # of the UNet: what begins at 0
DEVIATION = 0.02  # of a text encoder's embeddings and matrices (Radford et al. 2018, sec. 4.1)


def from_nothing(family: Family, seed: int = 0) -> Pipeline:
    """A pipeline of a family whose weights are random, with the official vocabularies; frozen.

    torch's global generator is as before. Raises InputError for a family with a vocabulary of its own.
    """
    tokenizers = [usual_tokenizer(text) for text in family.texts if not isinstance(text.config, ClassConfig)]
    for text, tokenizer in zip(family.texts, tokenizers, strict=False):
        if (known := len(tokenizer)) > (vocab := getattr(text.config, "vocab", known)):
            raise InputError(
                f"{family.name}'s {text.name} knows {vocab} tokens, and the official vocabulary has {known}; "
                "begin from a model that has its own"
            )
    texts = [fresh_text(text, seed) for text in family.texts]
    pipe = Pipeline(family, fresh_unet(family, seed), fresh_vae(family, seed), texts, tokenizers)
    for network in pipe.networks():
        network.eval().requires_grad_(False)
    return pipe


def like(pipe: Pipeline) -> Pipeline:
    """A pipeline of the same networks, on the CPU and with weights of their own."""
    family = pipe.family
    texts = [fresh_text(text, 0) for text in family.texts]
    return Pipeline(family, fresh_unet(family, 0), fresh_vae(family, 0), texts, pipe.tokenizers, pipe.origin)


def begin_anew(pipe: Pipeline, names: Sequence[str], seed: int = 0) -> None:
    """Draw the weights of some networks of a pipeline afresh, in place.

    names  "unet", "vae", and as `family.texts` has them. Raises InputError for others.
    """
    known, family = pipe.named_networks(), pipe.family
    texts = {text.name: text for text in family.texts}
    for name in names:
        if name not in known:
            raise InputError(f"fresh has {name!r}, which {family.name} has not; {nearest(name, known)}")
        makers = {"unet": lambda: fresh_unet(family, seed), "vae": lambda: fresh_vae(family, seed)}
        made = makers[name]() if name in makers else fresh_text(texts[name], seed)
        known[name].load_state_dict(made.state_dict())


def fresh_unet(family: Family, seed: int) -> UNet:
    """A UNet that says 0 at first."""
    with seeded(seed):
        unet = UNet(family.unet)
    for name, module in unet.named_modules():
        if name.rpartition(".")[2] in SILENT and isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return unet


def fresh_vae(family: Family, seed: int) -> VAE:
    """An autoencoder before its first step; its codes begin near one another, so that more come into use."""
    with seeded(seed):
        vae = VAE(family.vae)
        if vae.codebook is not None and family.vae.codes:
            spread = 1 / family.vae.codes  # as in the code of Esser et al. 2021
            nn.init.uniform_(vae.codebook.codes.weight, -spread, spread)
        return vae


def fresh_text(text: Text, seed: int) -> nn.Module:
    """A text encoder before its first step."""
    config = text.config
    with seeded(seed):
        if isinstance(config, ClassConfig):
            return ClassEmbedder(config)
        encoder: nn.Module = BERT(config) if isinstance(config, BERTConfig) else TextEncoder(config)
        for module in encoder.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=DEVIATION)
        return encoder


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it torch's global generator on the CPU is at a seed; after it, as before."""
    kept = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept)
