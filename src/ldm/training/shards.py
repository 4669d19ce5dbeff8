"""The data of training from tar files, as webdataset has them: the files of a sample share a name.

    a.jpg (or .jpeg .png .webp)        a.txt, its text, or a.cls, its class, or a.json with "text"; or nothing

Rank r of a world of w has the shards r, r + w, …, so what it sees depends on w, unlike `Batches`. An epoch
takes them in an order of its own, each from beginning to end, and epochs follow one another without end. What
is read waits in a window of `WINDOW` samples or `HELD` bytes, whichever are fewer, out of which the next one
is drawn: a sample comes at most a window earlier than in the files, so those of one kind must not lie
together. The place of a damaged sample is taken by the next whole one. Taking a run up again reads over what
came before, without looking at the pictures.
"""

import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from ldm.checks import number, one_of, shown, texts, whole
from ldm.errors import InputError
from ldm.training.buckets import MOST_SIDE
from ldm.training.data import MOST_ROWS, Batch, together
from ldm.training.folders import Prompt
from ldm.training.framing import CROPS, DamagedError, Item, Source, damage, drawn, generator
from ldm.training.images import FRAME, MOST_BAD, MOST_NUMBER, ORDER, check_few, passed_over, shuffled

PICTURES = ("jpg", "jpeg", "png", "webp")
SCHEME = re.compile(r"\w{2,}:")  # one letter is a drive of Windows
WINDOW, HELD = 1000, 2**28  # samples, and their bytes
BLEND = 4  # beside the draws of `images` and `draws`, whose are others

Made = Callable[[Source], Item]
Sample = Mapping[str, Any]  # its files as bytes, by their ends


class Shards:
    """One rank's samples of tar files, as squares.

    urls  files or addresses, one or several; "{000..041}" in one stands for 42, and "~" for the home folder
    rank  this process, 0 to world - 1, of `world`; there are at least as many shards
    The others are as in `Images`. Raises InputError; without the extra `data` too.
    """

    def __init__(
        self, urls: str | Path | Sequence[str | Path], *, size: int, crop: str = "center", flip: float = 0.0,
        seed: int = 0, rank: int = 0, world: int = 1, most_bad: int = MOST_BAD,
    ):  # fmt: skip
        self.crop, self.flip = one_of("crop", crop, CROPS), number("flip", flip, 0, 1)
        self.seed = whole("seed", seed, MOST_NUMBER, least=0)
        self.most_bad = whole("most_bad", most_bad, MOST_NUMBER, least=0)
        side = whole("size", size, MOST_SIDE)
        self.size = (side, side)
        every = addresses([urls] if isinstance(urls, (str, Path)) else urls)
        self.world = whole("world", world, MOST_ROWS)
        self.rank = whole("rank", rank, self.world - 1, least=0)
        if len(every) < self.world:
            raise InputError(f"{len(every)} shards are too few for {world} ranks; write more, smaller ones")
        self.urls = every[self.rank :: self.world]

    def batches(self, size: int, start: int = 0, made: Made = Source.item) -> Iterator[Batch]:
        """This rank's rows of batches, without end; the arguments are those of `Batches`."""
        size = whole("size", size, MOST_ROWS)
        if size % self.world:
            raise InputError(f"size {size} is not a multiple of world {self.world}, so ranks would differ")
        rows, known = size // self.world, dict[str, str]()
        stream = self.items(whole("start", start, MOST_NUMBER, least=0) * rows, made)
        while True:
            batch = together(*zip(*islice(stream, rows), strict=True))
            known = passed_over(known, batch.bad, self.most_bad)
            yield batch

    def items(self, start: int = 0, made: Made = Source.item) -> Iterator[tuple[Item, dict[str, str]]]:
        """Items without end from one on, each with the damaged samples it stands for."""
        places, bad = 0, dict[str, str]()
        for epoch, shard, sample in self.samples(start):
            places += 1
            try:
                item = made(self.source(epoch, shard, sample))
            except DamagedError as error:
                bad = {**bad, f"{sample['__key__']} in {sample['__url__']}": str(error)}
                check_few(bad, self.most_bad)
                if places > self.most_bad:  # the same ones, again and again
                    raise InputError(f"all samples of {self.urls[0]} … are damaged; {error}") from error
                continue
            for _ in range(places):
                yield item, bad
            places, bad = 0, {}

    def samples(self, start: int) -> Iterator[tuple[int, int, Sample]]:
        """Samples without end from one on: the epoch of each, the number of its shard, and itself."""
        length = 0
        for epoch in count():
            if length and start >= length:
                start -= length
                continue
            length = 0
            for shard, sample in blended(self.epoch(epoch), generator(self.seed, BLEND, epoch)):
                length += 1
                if length > start:
                    yield epoch, shard, sample
            start = max(0, start - length)
            if not length:
                raise InputError(f"{self.urls[0]} and {len(self.urls) - 1} other shards have no samples")

    def epoch(self, epoch: int) -> Iterator[tuple[int, Sample]]:
        """The samples of an epoch as they are read, each with its shard's number among those of all ranks."""
        for i in shuffled(len(self.urls), self.seed, ORDER, epoch).tolist():
            for sample in opened(self.urls[i]):
                yield self.rank + i * self.world, sample

    def source(self, epoch: int, shard: int, sample: Sample) -> Source:
        """The picture of a sample and what is told of it. Raises DamagedError."""
        key, found = sample["__key__"], [end for end in PICTURES if end in sample]
        own = zlib.crc32(key.encode())
        frame = drawn(self.size, self.crop, self.flip, self.seed, FRAME, epoch, shard, own)
        with damage():
            if len(found) != 1:
                raise InputError(f"{key} in {sample['__url__']} has {len(found)} pictures; it must have one")
            return Source(sample[found[0]], frame, prompt(sample), f"{key}.{found[0]}")


def blended(samples: Iterator[tuple[int, Sample]], draws: torch.Generator) -> Iterator[tuple[int, Sample]]:
    """All samples, each drawn from a window of those that have been read."""
    held, weight = list[tuple[int, Sample]](), 0
    for each in samples:
        held.append(each)
        weight += heft(each[1])
        while held and (len(held) >= WINDOW or weight >= HELD):
            one = taken(held, draws)
            weight -= heft(one[1])
            yield one
    while held:
        yield taken(held, draws)


def taken(held: list[tuple[int, Sample]], draws: torch.Generator) -> tuple[int, Sample]:
    """One of a list at random, which is out of it then."""
    at = int(torch.randint(len(held), (1,), generator=draws, device="cpu"))
    held[at], held[-1] = held[-1], held[at]
    return held.pop()


def heft(sample: Sample) -> int:
    """The bytes of a sample's files."""
    return sum(len(data) for data in sample.values() if isinstance(data, bytes))


def prompt(sample: Sample) -> Prompt:
    """What is told of a sample. Raises InputError."""
    where = f"{sample['__key__']} in {sample['__url__']}"
    if "txt" in sample and "cls" in sample:
        raise InputError(f"{where} has a text and a class; write one of them")
    try:
        if "txt" in sample:
            return texts(f"the text of {where}", [sample["txt"].decode("utf-8-sig").strip()])[0]
        if "cls" in sample:
            return int(sample["cls"])
        said = json.loads(sample.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"what {where} is told cannot be read: {error}; correct it") from error
    if not isinstance(said, dict) or not isinstance(said.get("text"), (str, type(None))):
        raise InputError(f"the json of {where} must be an object with a text, not {shown(said)}")
    return None if said.get("text") is None else texts(f"the text of {where}", [said["text"]])[0]


def opened(url: str) -> Iterator[Sample]:
    """The samples of a shard, as bytes. Raises InputError for what is no whole tar file."""
    from webdataset.tariterators import tarfile_samples

    try:
        if not SCHEME.match(url) and not ended(Path(url)):
            raise tarfile.ReadError("it is cut short")
        yield from tarfile_samples([{"url": url}])
    except Exception as error:  # of tar, of the network, of webdataset
        why = " ".join(str(error.args[0] if error.args else error).split())
        raise InputError(f"{url} cannot be read as a tar file: {why}; write it again") from error


def ended(path: Path) -> bool:
    """Whether a tar file has its end, two blocks of zeros, whose absence Python does not mind."""
    with path.open("rb") as file:
        plain = file.read(262)[257:] == b"ustar"  # others are compressed, and notice it themselves
        file.seek(max(0, path.stat().st_size - 1024))
        return not plain or file.read() == bytes(1024)


def addresses(urls: Sequence[str | Path]) -> list[str]:
    """Each shard. Raises InputError."""
    try:
        from braceexpand import braceexpand
        from webdataset import tariterators  # noqa: F401
    except ImportError:
        raise InputError("tar files need the extra: pip install 'ldm[data]'") from None
    try:
        found = [os.path.expanduser(each) for url in urls for each in braceexpand(str(url))]
    except ValueError as error:
        raise InputError(f"{shown(urls)} has braces that do not match; write {{000..041}}") from error
    for url in found:
        # webdataset hands addresses to a shell, in single quotes
        if url.startswith("pipe:") or (SCHEME.match(url) and "'" in url):
            raise InputError(f"{shown(url)} would run a command; give a file, or an address without quotes")
        if not SCHEME.match(url) and not Path(url).is_file():
            raise InputError(f"{url} is not a file; give tar files")
    if not found:
        raise InputError("urls is empty; give tar files")
    return found
