"""The scenes of training, without end: row n of a run shows a scene of its own, told in words of its own.

    (seed, n)  ->  scene, words  ->  picture x  ->  latent z = project(x)

No row depends on another, so what a step sees does not depend on when the run began, or on how many processes
share its batches. The judge's prompts (`ldm.evaluation.shapes.scoring`) are drawn from other numbers.
"""

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import torch
from einops import rearrange
from patches import Projection, project
from torch import Tensor

from ldm.evaluation.shapes.captions import Prompt, describe
from ldm.evaluation.shapes.world import MIX, SIDE, Scene, draw, pairs_seen, sample_scene
from ldm.ranks import Ranks
from ldm.training.data import Batch
from ldm.training.framing import generator
from ldm.training.rows import Rows

SCENE = 4  # beside what `ldm.training` draws, whose numbers are smaller


def random(seed: int, row: int) -> np.random.Generator:
    """The randomness of a row."""
    return np.random.default_rng(generator(seed, SCENE, row).initial_seed())


def told(seed: int, row: int) -> tuple[Scene, Prompt]:
    """The scene of a row, of pairs that may be trained on, and what is said of it."""
    rng = random(seed, row)
    layout = str(rng.choice(list(MIX), p=list(MIX.values())))
    scene = sample_scene(rng, layout, pairs_seen())
    return scene, describe(scene, rng)


def to_tensor(scenes: Sequence[Scene]) -> Tensor:
    """Pictures of scenes: [b 3 64 64] in [-1, 1]."""
    pixels = torch.from_numpy(np.stack([draw(scene) for scene in scenes]))
    return rearrange(pixels.float() / 127.5 - 1, "b h w c -> b c h w").contiguous()


def batch_of(seed: int, rows: Sequence[int], projection: Projection) -> Batch:
    """Rows as the painter sees them: moments of their latents, whose deviation is 0, and their words."""
    scenes, prompts = zip(*(told(seed, row) for row in rows), strict=True)
    z = project(to_tensor(scenes), projection)
    moments = torch.cat([z, torch.zeros_like(z)], dim=1)
    sizes, corners = [(SIDE, SIDE)] * len(rows), [(0, 0)] * len(rows)
    texts = [prompt.text for prompt in prompts]
    return Batch(moments, texts, [f"scene {row}" for row in rows], sizes, corners, {})


def batches(seed: int, size: int, projection: Projection, ranks: Ranks) -> Rows:
    """Batches of so many rows on all ranks together, this rank's part of them."""

    def begin(start: int) -> Iterator[Batch]:
        for k in count(start):
            yield batch_of(seed, range(k * size + ranks.rank, (k + 1) * size, ranks.size), projection)

    return Rows(begin)
