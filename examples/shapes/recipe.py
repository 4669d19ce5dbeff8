"""The recipe: what decides how the model is made, and the model before its first step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from bpe import learn_merges
from patches import Projection, set_encoder
from torch import nn

from ldm.checks import number, whole
from ldm.clip import TextEncoder, Tokenizer
from ldm.clip.tokenizer import vocabulary
from ldm.errors import InputError
from ldm.evaluation.shapes.captions import corpus
from ldm.families import SHAPES
from ldm.family import Family
from ldm.pipeline import Pipeline
from ldm.training.fresh import fresh_text, fresh_unet, fresh_vae, seeded

MOST_SEED = 10**9
MOST = 10**9  # steps, or scenes of a batch
LEAST_RATE, MOST_RATE = 1e-8, 0.1  # beyond them nothing is learned, or everything lost
STREAMS = 1000  # seeds of the stages of a run, all its own


@dataclass(frozen=True)
class Stage:
    """How long and how fast a network is trained: the rate rises for some steps, then fades to 0."""

    steps: int
    batch: int
    rate: float  # the peak
    muon: bool = False  # for the inner matrices of the UNet, instead of AdamW
    warmup: int = 100  # steps, of which a stage has more


@dataclass(frozen=True)
class Recipe:
    """All that decides what is made."""

    seed: int = 0  # of the weights, the scenes, their words and the noise
    source: str = ""  # "": all from nothing; "bundled", or a path: only the painter is trained, from there on
    reader: Stage = Stage(600, 128, 2e-3)
    decoder: Stage = Stage(2650, 32, 1.5e-3)
    passes: tuple[Stage, ...] = (  # of the painter, each from the averaged weights of the one before
        Stage(21_750, 24, 1.8e-3),
        Stage(3900, 24, 8e-4),
        Stage(23_000, 24, 1.5e-3, muon=True),
        Stage(2650, 24, 8e-4, muon=True),
        Stage(12_850, 24, 1.5e-3, muon=True),
        Stage(4250, 24, 8e-4, muon=True),
    )
    blur: float = 0.1  # the most noise on latents, in standard deviations, while the decoder is trained
    power: float = 0.7  # t = 1000 u^power; below 1: more of the high noise, where the text decides
    drop: float = 0.1  # how often the prompt is left empty, for guidance
    ema: float = 0.998  # decay of the running mean of the painter's weights

    def seed_of(self, stream: int) -> int:
        """The seed of a stage: 0 the projection, 1 the reader, 2 the decoder, 3 what is looked at, 10 + i
        pass i."""
        return STREAMS * self.seed + stream


def check(recipe: Recipe, world: int = 1) -> None:
    """Raises InputError for a recipe that makes no sense, or does not divide among so many processes."""
    whole("seed", recipe.seed, MOST_SEED, least=0)
    stages = {"reader": recipe.reader, "decoder": recipe.decoder}
    stages |= {f"pass {i}": each for i, each in enumerate(recipe.passes, 1)}
    for name, stage in stages.items():
        whole(f"steps of {name}", stage.steps, MOST, least=stage.warmup + 1)
        whole(f"batch of {name}", stage.batch, MOST)
        number(f"rate of {name}", stage.rate, LEAST_RATE, MOST_RATE)
        # every fourth step of the decoder is on a quarter of its batch
        part = 4 * world if name == "decoder" else world
        if stage.batch % part:
            raise InputError(f"the batch of {name}, {stage.batch}, is not a multiple of {part}")


def shared(stages: Sequence[Stage], steps: int) -> tuple[Stage, ...]:
    """Stages of so many steps together, shared out as they are now. Raises InputError for too few."""
    total = sum(stage.steps for stage in stages)
    whole("steps", steps, MOST, least=max(ceil((each.warmup + 1) * total / each.steps) for each in stages))
    return tuple(replace(stage, steps=round(steps * stage.steps / total)) for stage in stages)


def make_tokenizer(length: int) -> Tokenizer:
    """A tokenizer to which every word of the grammar is one token; prompts are padded to `length`."""
    merges = learn_merges(corpus())
    return Tokenizer(vocabulary(merges), merges, length=length)


def from_nothing(recipe: Recipe, projection: Projection, family: Family = SHAPES) -> Pipeline:
    """The model before its first step; only its encoder is as it will be, as nobody trains that."""
    (text,) = family.texts
    encoder, vae = fresh_text(text, recipe.seed), fresh_vae(family, recipe.seed)
    tokenizer = make_tokenizer(text.config.length)
    assert isinstance(encoder, TextEncoder) and len(tokenizer) == text.config.vocab
    with seeded(recipe.seed), torch.no_grad():
        nn.init.normal_(encoder.tokens.weight, std=0.3)
        nn.init.normal_(encoder.positions.weight, std=0.1)
        for name, p in vae.named_parameters():
            if "conv2." in name or "attn.out." in name:
                p.zero_()
    set_encoder(vae, projection)
    pipe = Pipeline(family, fresh_unet(family, recipe.seed), vae, [encoder], [tokenizer])
    for network in pipe.networks():
        network.eval().requires_grad_(False)
    return pipe
