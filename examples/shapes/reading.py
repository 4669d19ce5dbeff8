"""The text encoder learns to read before the painter learns to paint, and is then left as it is.

Each of the last tokens of a padded prompt is one slot, and must name, by one linear layer, what one shape of
the prompt is to be: the first that is mentioned, the second, the third; one more names the ground.

    loss = mean over the questions of  -log softmax(head(text(ids)[slot]))[answer]

Stable Diffusion stands on a frozen CLIP in the same way. What the slots say is what cross-attention reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from recipe import Recipe
from scenes import told
from torch import Tensor, nn

from ldm.clip import TextEncoder
from ldm.evaluation.shapes.captions import OPPOSITE, Prompt, Want
from ldm.evaluation.shapes.world import COLOURS, GROUNDS, KINDS, RELATIONS, SIZES
from ldm.pipeline import Pipeline
from ldm.ranks import Ranks
from ldm.training.distributed import spread
from ldm.training.fresh import seeded
from ldm.training.loop import Plan, Run, train
from ldm.training.rates import rate

LOOKED_AT = 512  # prompts that the reader is examined with
SHAPES = 3  # the most shapes in a prompt
QUESTIONS = {  # of a shape, and the answers there are, after "unsaid"
    "kind": tuple(KINDS),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "column": (0, 1, 2),
    "row": (0, 1, 2),
    "relation": RELATIONS,  # where it stands, seen from the other
}


class Reader(nn.Module):
    """A text encoder and the two linear layers that question it."""

    def __init__(self, text: TextEncoder):
        super().__init__()
        self.text = text
        self.shape = nn.Linear(text.config.width, sum(1 + len(answers) for answers in QUESTIONS.values()))
        self.ground = nn.Linear(text.config.width, 1 + len(GROUNDS))

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Token ids [b n] -> for each question of each slot, then for the ground, logits [b answers]."""
        slots = self.text(ids)[:, -SHAPES - 1 :]
        sizes = [1 + len(answers) for answers in QUESTIONS.values()]
        said = [part for i in range(SHAPES) for part in self.shape(slots[:, i]).split(sizes, dim=1)]
        return [*said, self.ground(slots[:, -1])]


def answers(prompt: Prompt) -> list[int]:
    """What a reader should say of a prompt, in the order of its logits; 0 is "unsaid"."""
    there = [_about(want, prompt, i) for i, want in enumerate(prompt.wants)]
    empty = [[0] * len(QUESTIONS)] * (SHAPES - len(there))
    return [*chain(*there, *empty), _index(prompt.ground, tuple(GROUNDS))]


def _about(want: Want, prompt: Prompt, i: int) -> list[int]:
    column, row = want.cell or (None, None)
    relation = prompt.relation if i == 0 else OPPOSITE.get(prompt.relation or "")
    said = (want.kind, want.colour, want.size, column, row, relation)
    return [_index(word, known) for word, known in zip(said, QUESTIONS.values(), strict=True)]


def _index(word: object, known: tuple[object, ...]) -> int:
    return 0 if word is None else 1 + known.index(word)


def train_reader(
    pipe: Pipeline, recipe: Recipe, run: Path, ranks: Ranks, every: int = 100, progress: bool = True
) -> None:
    """The text encoder of `pipe` learns to read. every: steps between checkpoints."""
    stage, seed, device = recipe.reader, recipe.seed_of(1), ranks.device
    (text,), (tokenizer,) = pipe.text_encoders, pipe.tokenizers
    text.requires_grad_(True)
    with seeded(seed):
        reader = Reader(text).to(device)
    module = spread(reader, ranks, units={reader: ()})

    def asked(seed: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Prompts of rows as ids [b n], and their answers; the first of every batch is empty."""
        prompts = [told(seed, row)[1] if row % stage.batch else Prompt("", ()) for row in rows]
        right = torch.tensor([answers(prompt) for prompt in prompts])
        return tokenizer([prompt.text for prompt in prompts]).to(device), right.to(device)

    def loss(step: int, part: int) -> Tensor:
        rows = range(step * stage.batch + ranks.rank, (step + 1) * stage.batch, ranks.size)
        ids, right = asked(seed, rows)
        said = module(ids)
        return torch.stack([F.cross_entropy(each, right[:, i]) for i, each in enumerate(said)]).mean()

    shown = asked(recipe.seed_of(3), range(LOOKED_AT))

    @torch.no_grad()
    def look(step: int) -> Mapping[str, float]:
        hits = torch.stack([each.argmax(1) == shown[1][:, i] for i, each in enumerate(reader(shown[0]))])
        return {"read": hits.all(0).float().mean().item()}

    plan = Plan(stage.steps, rate("cosine", stage.steps, stage.warmup), save_every=every, look_every=every)
    adam = torch.optim.AdamW(reader.parameters(), stage.rate, betas=(0.9, 0.99), fused=True)
    config = {"recipe": asdict(stage), "seed": seed}
    train(Run(reader, adam, loss, plan, run / "reader", config, ranks=ranks, look=look), progress=progress)
    text.requires_grad_(False)
