"""The text encoder learns to read before the painter learns to paint, and is then left as it is.

Each of the last tokens of a padded prompt is one slot, and must name, by one linear layer, what one shape of
the prompt is to be: the first that is mentioned, the second, the third; one more names the ground.

    loss = mean over the questions of  -log softmax(head(text(ids)[slot]))[answer]

Stable Diffusion stands on a frozen CLIP in the same way. What the slots say is what cross-attention reads.
"""

from itertools import chain

import torch
import torch.nn.functional as F
from captions import OPPOSITE, Prompt, Want, describe
from loop import Loss, Part, generators
from stages import Recipe, split
from torch import Tensor, nn
from world import COLOURS, GROUNDS, KINDS, RELATIONS, SIZES, Scene

from ldm.clip import TextEncoder, Tokenizer

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


def reader_loss(
    reader: Reader, tokenizer: Tokenizer, scenes: list[Scene], recipe: Recipe, device: str
) -> Loss:
    """The reading loss of a step, on prompts for training scenes, a few of them empty."""

    def loss(step: int) -> list[Part]:
        rng, _ = generators(recipe.seed + 2, step)
        prompts = [describe(scenes[i], rng) for i in rng.choice(len(scenes), size=recipe.reader_batch)]
        prompts[0] = Prompt("", ())
        ids = tokenizer([prompt.text for prompt in prompts]).to(device)
        right = torch.tensor([answers(prompt) for prompt in prompts], device=device)
        return [lambda ids=ids, right=right: part(ids, right) for ids, right in split(device, ids, right)]

    def part(ids: Tensor, right: Tensor) -> tuple[Tensor, dict[str, float]]:
        said = reader(ids)
        value = torch.stack([F.cross_entropy(logits, right[:, i]) for i, logits in enumerate(said)]).mean()
        hits = torch.stack([logits.argmax(1) == right[:, i] for i, logits in enumerate(said)], dim=1)
        return value, {"loss": value.item(), "read": hits.all(1).float().mean().item()}

    return loss
