"""The rows of a run's data: which images its batches have, and the loss of a part of one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ldm.errors import InputError
from ldm.pipeline import Pipeline
from ldm.ranks import Ranks
from ldm.training.cache import Latents
from ldm.training.data import Batch, Batches
from ldm.training.framing import Item, Source
from ldm.training.images import Images
from ldm.training.loop import Loss
from ldm.training.settings import TARS, Settings
from ldm.training.shards import Shards


class Begin(Protocol):
    """The number of the first batch -> it and all after it, this rank's rows of them."""

    def __call__(self, first: int) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Rows:
    """The data of a run; called as `Begin`, with the number of a part of a batch."""

    batches: Begin  # whole ones
    parts: int = 1  # that each is cut into
    images: int = 0  # in all; 0: nobody has counted them
    digest: str = ""  # of their names and of what is said of them; "": nobody has looked

    def __call__(self, first: int) -> Iterator[Batch]:
        cut = (
            part
            for batch in self.batches(first // self.parts)
            for part in in_parts(batch, len(batch.names) // self.parts)
        )
        return islice(cut, first % self.parts, None)


def in_parts(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in parts of so many rows, the last of what is left."""
    for at in range(0, len(batch.names), size):
        here = slice(at, at + size)
        yield Batch(
            batch.images[here], batch.prompts[here], batch.names[here], batch.originals[here],
            batch.corners[here], batch.bad,
        )  # fmt: skip


def rows_of(settings: Settings, pipe: Pipeline, ranks: Ranks = Ranks(), latents: bool = True) -> Rows:
    """The rows of a run's batches, in its parts.

    latents  whether they may be of remembered moments
    Raises InputError.
    """
    data, size, parts = settings.data, settings.batch, settings.accumulate
    made = maker(settings, pipe, latents)
    same = framed(settings, pipe)
    if data.path.endswith(TARS):
        if data.buckets or data.workers:
            field = "buckets" if data.buckets else "workers"
            raise InputError(f"data.{field} are for folders of images; give 0 for shards")
        shards = Shards(data.path, rank=ranks.rank, world=ranks.size, most_bad=data.most_bad, **same)
        return Rows(lambda first: shards.batches(size, first, made), parts)
    if data.buckets % pipe.family.unit:
        raise InputError(unfit("data.buckets", data.buckets, pipe))
    images = Images(data.path, buckets=data.buckets or None, most_bad=data.most_bad, **same)
    workers = 0 if latents and data.cache else data.workers
    said = digest([(entry.name, entry.prompt) for entry in images.entries])
    return Rows(
        lambda first: iter(Batches(images, size, ranks.rank, ranks.size, first, workers, made)),
        parts, len(images), said,
    )  # fmt: skip


def some_rows(
    settings: Settings, pipe: Pipeline, size: int, path: str = "", latents: bool = True
) -> Iterator[Batch]:
    """Batches of so many images of a run's data, or of other data, for looks. Raises InputError."""
    path, made, same = path or settings.data.path, maker(settings, pipe, latents), framed(settings, pipe)
    if path.endswith(TARS):
        return Shards(path, most_bad=settings.data.most_bad, **same).batches(size, 0, made)
    return iter(Batches(Images(path, most_bad=settings.data.most_bad, **same), size, made=made))


def maker(settings: Settings, pipe: Pipeline, latents: bool) -> Callable[[Source], Item]:
    """What becomes of an image: its pixels, or the moments of its latent, which are kept."""
    cache = settings.data.cache
    return Latents(pipe, Path(cache) / "latents") if latents and cache else Source.item


def framed(settings: Settings, pipe: Pipeline) -> dict[str, Any]:
    """How images are framed, for `Images` and `Shards`. Raises InputError."""
    data = settings.data
    side = data.size or pipe.family.size
    if side % pipe.family.unit:
        raise InputError(unfit("data.size", side, pipe))
    return {"size": side, "crop": data.crop, "flip": data.flip, "seed": settings.seed}


def unfit(name: str, side: int, pipe: Pipeline) -> str:
    """That a size in pixels is none of a model's."""
    return f"{name} {side} is not a multiple of {pipe.family.unit}, as {pipe.family.name} needs"


def digest(told: Sequence[Any]) -> str:
    """64 bits that tell data apart."""
    return sha256(repr(list(told)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def loss_of(module: nn.Module, begin: Rows, settings: Settings, ranks: Ranks) -> Loss:
    """The mean loss of a part of a step's batch, on this rank.

    module  (batch, numbers of its rows in the run) -> the loss of each [b]
    """
    size, streams, kept = settings.batch // settings.accumulate, list[Iterator[Batch]](), dict[int, Batch]()

    def batch(k: int) -> Batch:
        if settings.overfit:
            kept[k] = kept[k] if k in kept else next(begin(k))
            return kept[k]
        if not streams:
            streams.append(begin(k))
        return next(streams[0])

    def loss(step: int, part: int) -> Tensor:
        k = part if settings.overfit else step * settings.accumulate + part
        return module(batch(k), range(k * size + ranks.rank, (k + 1) * size, ranks.size)).mean()

    return loss
