"""The data of training: batches of a folder's images, each a function of its number alone.

An epoch takes the images of a bucket in an order of its own. Epoch after epoch they make one endless row,
which is cut into batches of b; where a bucket has n images, its batches j that are complete in epoch e are

    floor(e n / b) <= j < floor((e + 1) n / b),

and the buckets take turns at random. So each batch is full and of one size, each image comes once in each
epoch, and what a bucket has left over, fewer than b, opens its first batch of the next epoch. Rank r of a
world of w has the rows r, r + w, … of every batch: what a step sees does not depend on w.

The place of a damaged image is taken by the next whole one of its bucket in the order of that epoch; where
the bucket has none, by one of another bucket, cut to this one's size. The files alone decide which, so every
rank and every resumed run agree.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ldm.checks import shown, whole
from ldm.errors import InputError
from ldm.training.folders import Prompt
from ldm.training.framing import DamagedError, Item, Source
from ldm.training.images import MOST_NUMBER, PLAN, Images, check_few, passed_over, shuffled

MOST_ROWS, MOST_WORKERS = 2**20, 256


class Batch(NamedTuple):
    """What a step trains on; entry i of each belongs to image i, and sizes are as in `Item`."""

    images: Tensor  # float32 [b 3 H W] in [-1, 1]; of `Latents` their moments, [b 2c h w]
    prompts: list[Prompt]  # what `hearing.condition` takes
    names: list[str]
    originals: list[tuple[int, int]]
    corners: list[tuple[int, int]]
    bad: dict[str, str]  # damaged images that others took the place of, and what is wrong with them


class Batches(Dataset[Batch]):
    """One rank's rows of the batches of a run: `batches[k]`, or one after another without end.

    size     rows of a batch on all ranks together
    rank     this process, 0 to world - 1, of `world`, which divides size
    start    the first batch that is iterated over: where a run is taken up again
    workers  processes that read ahead of the iteration; 0: it reads itself. Nothing depends on how many
    made     what a source becomes: its picture, or `Latents`, which remember (with workers=0)
    Damaged images are logged, and beyond `images.most_bad` on this rank an InputError; others raise too.
    An image is damaged where `made` raises DamagedError; any other error is raised as it is.
    """

    def __init__(
        self, images: Images, size: int, rank: int = 0, world: int = 1, start: int = 0, workers: int = 0,
        made: Callable[[Source], Item] = Source.item,
    ):  # fmt: skip
        self.images, self.size, self.made = images, whole("size", size, MOST_ROWS), made
        self.world = whole("world", world, self.size)
        self.rank = whole("rank", rank, self.world - 1, least=0)
        self.start = whole("start", start, MOST_NUMBER, least=0)
        self.workers = whole("workers", workers, MOST_WORKERS, least=0)
        if self.size % self.world:
            raise InputError(f"size {size} is not a multiple of world {world}, so ranks would differ in rows")
        self.counts = tuple(np.bincount(images.bucket, minlength=len(images.sizes)).tolist())

    def __iter__(self) -> Iterator[Batch]:
        known = dict[str, str]()
        for batch in self.ahead() if self.workers else map(self.__getitem__, count(self.start)):
            known = passed_over(known, batch.bad, self.images.most_bad)
            yield batch

    def __getitem__(self, k: int) -> Batch:
        """Batch k of the run, from 0. Raises InputError for too many damaged images."""
        _, bucket, j = self.place(k)
        places = range(j * self.size + self.rank, (j + 1) * self.size, self.world)
        n = self.counts[bucket]
        orders = {epoch: self.images.members(bucket, epoch) for epoch in {place // n for place in places}}
        rows = [self.first_whole(bucket, place // n, orders[place // n], place % n) for place in places]
        return together(*zip(*rows, strict=True))

    def place(self, k: int) -> tuple[int, int, int]:
        """The epoch in which batch k is complete, its bucket, and which batch of that bucket it is."""
        k = whole("k", k, MOST_NUMBER, least=0)
        end = (k + len(self.counts) + 1) * self.size // sum(self.counts) + 2  # it is complete before
        epoch = bisect_right(range(1, end), k, key=lambda e: complete(self.counts, self.size, e))
        at = k - complete(self.counts, self.size, epoch)
        bucket, j = plan(self.counts, self.size, self.images.seed, epoch)[at]
        return epoch, bucket, j

    def first_whole(self, bucket: int, epoch: int, order: np.ndarray, at: int) -> tuple[Item, dict[str, str]]:
        """The first whole image from a place in a bucket's order on, and the damaged ones before it."""
        bad = dict[str, str]()
        for index in chain(turned(order, at), self.others(bucket, epoch, at)):
            try:
                return self.made(self.images.source(epoch, index, bucket)), bad
            except DamagedError as error:
                bad = {**bad, self.images.entries[index].name: str(error)}
                check_few(bad, self.images.most_bad)
        raise InputError(f"none of the {len(self.images)} images can be read; {next(iter(bad.values()))}")

    def others(self, bucket: int, epoch: int, at: int) -> Iterator[int]:
        """The images of all other buckets in the order of an epoch, from a place on."""
        order = self.images.order(epoch)
        yield from turned(order[self.images.bucket[order] != bucket], at)

    def ahead(self) -> Iterator[Batch]:
        """The batches from `start` on, read by workers."""
        # its own generator, or the workers' seeds, which nobody uses, would move torch's
        loader = DataLoader(
            Tried(self), sampler=Numbers(self.start), batch_size=None, collate_fn=as_it_is,
            num_workers=self.workers, generator=torch.Generator(),
        )  # fmt: skip
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch


class Tried(Dataset[Batch | InputError]):
    """Batches that give an error back: a worker that raises it would put its traceback in the sentence."""

    def __init__(self, batches: Batches):
        self.batches = batches

    def __getitem__(self, k: int) -> Batch | InputError:
        try:
            return self.batches[k]
        except InputError as error:
            return error


class Numbers(Sampler[int]):
    """All whole numbers from one on."""

    def __init__(self, start: int):
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return count(self.start)


def as_it_is(batch: Any) -> Any:
    """What DataLoader is to make of a batch: nothing else."""
    return batch


def turned(order: np.ndarray, at: int) -> Iterator[int]:
    """All of an order, from a place on and then from its beginning."""
    return (int(order[(at + step) % len(order)]) for step in range(len(order)))


def complete(counts: Sequence[int], size: int, epoch: int) -> int:
    """How many batches are complete before an epoch. counts: images of each bucket."""
    return sum(epoch * n // size for n in counts)


@lru_cache(maxsize=4)
def plan(counts: tuple[int, ...], size: int, seed: int, epoch: int) -> list[tuple[int, int]]:
    """The batches that are complete in an epoch, in its order: the bucket of each, and which of it."""
    rows = [range(epoch * n // size, (epoch + 1) * n // size) for n in counts]
    turns = [bucket for bucket, row in enumerate(rows) for _ in row]
    left = [iter(row) for row in rows]  # a bucket's batches keep their order
    mixed = (turns[i] for i in shuffled(len(turns), seed, PLAN, epoch).tolist())
    return [(bucket, next(left[bucket])) for bucket in mixed]


def together(items: Sequence[Item], bad: Sequence[dict[str, str]]) -> Batch:
    """Items as a batch. Raises InputError for some with a prompt and some without, or of another kind."""
    first, kinds = items[0], [type(item.prompt) for item in items]
    if len(set(kinds)) > 1:
        other = next(item for item, kind in zip(items, kinds, strict=True) if kind != kinds[0])
        raise InputError(
            f"{first.name} is told {shown(first.prompt)} and {other.name} {shown(other.prompt)}; "
            "give all a text, all a class, or none anything"
        )
    images, prompts, names, originals, corners = (list(each) for each in zip(*items, strict=True))
    every = {name: why for some in bad for name, why in some.items()}
    return Batch(torch.stack(images), prompts, names, originals, corners, every)
