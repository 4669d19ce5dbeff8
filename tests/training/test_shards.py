"""Laws of the data of training in tar files."""

import bz2
import gzip
import io
import json
import logging
import lzma
import sys
import tarfile
from itertools import count, islice
from pathlib import Path

import pytest
import torch

from ldm.errors import InputError
from ldm.training import shards as shards_module
from ldm.training.framing import generator
from ldm.training.images import Images
from ldm.training.shards import Shards, blended
from tests.training.albums import album, picture, png


def tar(path: Path, files: dict[str, bytes | str]) -> Path:
    """A tar file of files in their order."""
    with tarfile.open(path, "w") as out:
        for name, data in files.items():
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def shards(folder: Path, number: int, each: int) -> list[Path]:
    """The album of as many pictures as tar files of `each`, with texts."""
    samples = [(f"{i:02}", png(i), f"text {i}") for i in range(number * each)]
    parts = [samples[each * n : each * (n + 1)] for n in range(number)]
    return [
        tar(folder / f"{n}.tar", {k: v for key, image, text in part
                                  for k, v in ((f"{key}.png", image), (f"{key}.txt", text))})
        for n, part in enumerate(parts)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[Path]:
    return shards(tmp_path_factory.mktemp("shards"), 3, 4)


def first(shards: Shards, number: int, start: int = 0) -> list:
    return [item for item, _ in islice(shards.items(start), number)]


def same(a, b) -> bool:
    return torch.equal(a.image, b.image) and a[1:] == b[1:]


def test_an_epoch_of_shards_is_the_folder_they_were_made_of(three, tmp_path):
    images = Images(album(tmp_path, 12), size=16)
    items = {item.name: item for item in first(Shards(three, size=16), 12)}
    assert len(items) == 12
    for i, entry in enumerate(images.entries):
        assert same(items[entry.name], images.item(0, i))


def test_epochs_differ_in_order_and_draws_and_are_the_same_again(three):
    options = {"size": 16, "crop": "random", "flip": 0.5}
    run = first(Shards(three, **options), 60)
    assert all(map(same, run, first(Shards(three, **options), 60)))
    epochs = [run[12 * e : 12 * (e + 1)] for e in range(5)]
    assert all(len({item.name for item in epoch}) == 12 for epoch in epochs)
    assert len({tuple(item.name for item in epoch) for epoch in epochs}) > 1
    by_name = [{item.name: item for item in epoch} for epoch in epochs[:2]]
    assert sum(same(by_name[0][name], by_name[1][name]) for name in by_name[0]) < 6


@pytest.mark.parametrize("window", [1000, 3])
def test_a_run_taken_up_again_goes_on_as_it_would_have(three, window, monkeypatch):
    monkeypatch.setattr(shards_module, "WINDOW", window)
    options = {"size": 16, "crop": "random"}
    run = first(Shards(three, **options), 40)
    for start in (1, 11, 12, 13, 30):
        assert all(map(same, first(Shards(three, **options), 40 - start, start), run[start:]))
    batches = list(islice(Shards(three, **options).batches(5), 6))
    tail = list(islice(Shards(three, **options).batches(5, start=4), 2))
    assert all(
        torch.equal(a.images, b.images) and a[1:] == b[1:] for a, b in zip(tail, batches[4:], strict=True)
    )


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_shards_out(three, world):
    ranks = [Shards(three, size=16, rank=rank, world=world) for rank in range(world)]
    names = [{item.name for item in first(rank, 4 * len(rank.urls))} for rank in ranks]
    assert sum(map(len, names)) == len(set.union(*names)) == 12
    assert all(len(next(rank.batches(6)).names) == 6 // world for rank in ranks)


def test_what_is_drawn_for_a_sample_does_not_depend_on_the_world(three):
    found = []
    for world in (1, 2, 3):
        ranks = [Shards(three, size=16, crop="random", rank=rank, world=world) for rank in range(world)]
        found.append({item.name: item for rank in ranks for item in first(rank, 4 * len(rank.urls))})
    assert all(same(each[name], found[0][name]) for each in found for name in found[0])


def test_equal_names_in_two_shards_share_no_draws(tmp_path):
    paths = [tar(tmp_path / f"{n}.tar", {f"{i}.png": png(i) for i in range(9)}) for n in range(2)]
    items = first(Shards(paths, size=16, crop="random"), 18)
    pairs = [[item for item in items if item.name == f"{i}.png"] for i in range(9)]
    assert sum(same(*pair) for pair in pairs) < 5


# the window


def test_a_single_shard_is_in_another_order_in_each_epoch(tmp_path):
    (path,) = shards(tmp_path, 1, 12)
    names = [item.name for item in first(Shards(path, size=16), 36)]
    epochs = [names[at : at + 12] for at in (0, 12, 24)]
    assert all(sorted(epoch) == [f"{i:02}.png" for i in range(12)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert names != [item.name for item in first(Shards(path, size=16, seed=1), 36)]


def test_batches_of_a_shard_in_order_of_its_classes_have_several(tmp_path):
    files = {f"{i:03}.{end}": data for i in range(80)
             for end, data in (("png", png(i)), ("cls", str(i // 40)))}  # fmt: skip
    batches = list(islice(Shards(tar(tmp_path / "a.tar", files), size=16).batches(10), 8))
    assert all(len(set(batch.prompts)) == 2 for batch in batches)


@pytest.mark.parametrize(("window", "bytes_held"), [(5, 1000), (1000, 50), (1000, 0), (1, 1000)])
def test_a_window_gives_each_sample_once_and_holds_no_more_than_it_may(monkeypatch, window, bytes_held):
    monkeypatch.setattr(shards_module, "WINDOW", window)
    monkeypatch.setattr(shards_module, "HELD", bytes_held)
    read, most = count(), max(1, min(window, bytes_held // 10))
    every = [(0, {"__key__": str(i), "png": bytes(10), "n": i}) for i in range(300)]
    seen, ahead = [], []
    for _, sample in blended((every[next(read)] for _ in every), generator(0)):
        seen.append(sample["n"])
        ahead.append(sample["n"] < len(seen) - 1 + most)  # at most a window before its turn
    assert sorted(seen) == list(range(300)) and all(ahead)
    assert (seen == sorted(seen)) == (most == 1)


@pytest.mark.parametrize("end", ["tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_shards_may_be_compressed(three, tmp_path, end):
    press = {"bz2": bz2, "xz": lzma}.get(end.rpartition(".")[2], gzip).compress
    (path := tmp_path / f"a.{end}").write_bytes(press(three[0].read_bytes()))
    assert all(map(same, first(Shards(path, size=16), 8), first(Shards(three[0], size=16), 8)))


def test_names_in_braces_are_several(three):
    assert Shards(str(three[0].parent / "{0..2}.tar"), size=16).urls == [str(path) for path in three]


@pytest.mark.parametrize("name", ["~/{0..2}.tar", Path("~/{0..2}.tar"), "{~/0,~/1,~/2}.tar"])
def test_the_home_folder_may_be_told_by_its_sign(three, monkeypatch, name):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(three[0].parent))
    assert [Path(url) for url in Shards(name, size=16).urls] == three


TOLD = {
    "txt": ({"txt": " ein Hündchen \n"}, "ein Hündchen"),
    "cls": ({"cls": "7"}, 7),
    "json": ({"json": json.dumps({"text": "x", "width": 3})}, "x"),
    "json without a text": ({"json": "{}"}, None),
    "text before json": ({"txt": "x", "json": '{"text": "y"}'}, "x"),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("end", ["jpg", "jpeg", "png", "webp"])
@pytest.mark.parametrize("case", TOLD)
def test_what_is_told_of_a_sample(tmp_path, case, end):
    files, wanted = TOLD[case]
    data = io.BytesIO()
    picture(0, (16, 16)).save(data, {"jpg": "jpeg"}.get(end, end))
    path = tar(
        tmp_path / "a.tar", {f"d/a.{end}": data.getvalue(), **{f"d/a.{k}": v for k, v in files.items()}}
    )
    (item,) = first(Shards(path, size=16), 1)
    assert (item.prompt, item.name, item.original) == (wanted, f"d/a.{end}", (16, 16))


DAMAGED = {
    "picture": ({"b.png": png(1)[:200]}, r"b\.png cannot be read as a picture"),
    "no picture": ({"b.txt": "x"}, "has 0 pictures; it must have one"),
    "two pictures": ({"b.png": png(1), "b.jpg": png(1)}, "has 2 pictures"),
    "not UTF-8": ({"b.png": png(1), "b.txt": b"\xff"}, "cannot be read: 'utf-8'"),
    "no number": ({"b.png": png(1), "b.cls": "dog"}, "cannot be read: invalid literal"),
    "two kinds": ({"b.png": png(1), "b.cls": "1", "b.txt": "x"}, "has a text and a class"),
    "no JSON": ({"b.png": png(1), "b.json": "{"}, "cannot be read: "),
    "no object": ({"b.png": png(1), "b.json": "[]"}, r"must be an object with a text, not \[\]"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_the_next_whole_sample_takes_a_damaged_one_s_place(tmp_path, case, caplog):
    files, wanted = DAMAGED[case]
    path = tar(tmp_path / "a.tar", {"a.png": png(0), **files, "c.png": png(2)})
    order = [sample["__key__"] for *_, sample in islice(Shards(path, size=16).samples(0), 9)]
    wanted = [next(f"{key}.png" for key in order[i:] if key != "b") for i in range(6)]
    for start in range(6):
        found = first(Shards(path, size=16), 6 - start, start)
        assert [item.name for item in found] == wanted[start:]
    with caplog.at_level(logging.WARNING, "ldm"):
        batches = list(islice(Shards(path, size=16).batches(3), 3))
    assert caplog.text.count("passed over") == 1
    assert all(len(batch.bad) == 1 for batch in batches)
    with pytest.raises(InputError, match=rf"1 images are damaged, more than most_bad 0.*{wanted}"):
        first(Shards(path, size=16, most_bad=0), 3)


def test_shards_of_damaged_samples_end(tmp_path):
    path = tar(tmp_path / "a.tar", {"a.png": b"", "b.png": b""})
    with pytest.raises(InputError, match=r"all samples of .* are damaged; [ab]\.png cannot be read"):
        first(Shards(path, size=16, most_bad=5), 1)


def test_shards_that_cannot_be_used_are_refused(three, tmp_path):
    cut, zipped = tmp_path / "cut.tar", tmp_path / "cut.tar.gz"
    for length in (100, 700, 2500, 4096):
        cut.write_bytes(three[0].read_bytes()[:length])
        with pytest.raises(InputError, match=r"cut\.tar cannot be read as a tar file: .*; write it again"):
            first(Shards(cut, size=16), 4)
    for length in (100, 3000):
        zipped.write_bytes(gzip.compress(three[0].read_bytes())[:length])
        with pytest.raises(
            InputError, match=r"cut\.tar\.gz cannot be read as a tar file: .*; write it again"
        ):
            first(Shards(zipped, size=16), 4)
    with pytest.raises(InputError, match="have no samples"):
        first(Shards(tar(tmp_path / "empty.tar", {}), size=16), 1)
    mixed = tar(tmp_path / "mixed.tar", {"a.png": png(0), "a.txt": "x", "b.png": png(1)})
    with pytest.raises(InputError, match=r"(a\.png is told 'x' and b\.png None|b.* None and a.* 'x'); give"):
        next(Shards(mixed, size=16).batches(2))


REFUSED = {
    "no file": ("nowhere.tar", {}, r"nowhere\.tar is not a file; give tar files"),
    "none": ([], {}, "urls is empty"),
    "a command": ("pipe:cat a.tar", {}, "would run a command"),
    "a hidden command": ("https://host/'$(id)'.tar", {}, "would run a command"),
    "more ranks than shards": (None, {"world": 4}, "3 shards are too few for 4 ranks"),
    "rank": (None, {"rank": 1}, "rank must be from 0 to 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused(three, case):
    urls, options, wanted = REFUSED[case]
    with pytest.raises(InputError, match=wanted):
        Shards(three if urls is None else urls, size=16, **options)
    with pytest.raises(InputError, match="size 5 is not a multiple of world 2"):
        next(Shards(three, size=16, world=2).batches(5))


def test_without_webdataset_the_extra_is_named(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(InputError, match=r"pip install 'ldm\[data\]'"):
        Shards(three, size=16)
