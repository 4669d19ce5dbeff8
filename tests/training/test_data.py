"""Laws of the batches of training."""

import io
import json
import logging
import pickle
import sys
from itertools import count, islice, pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from ldm.errors import InputError
from ldm.training import buckets
from ldm.training.data import Batches, complete, plan
from ldm.training.framing import DamagedError, Frame, Item, Source, covering, drawn
from ldm.training.images import Images
from tests.training.albums import album, picture, png, write

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "shapes"))
from export_images import export_images

SHAPES = ((24, 16), (16, 16), (16, 40))
EVERY = {"crop": "random", "flip": 0.5}


def same_items(a: Item, b: Item) -> bool:
    return torch.equal(a.image, b.image) and a[1:] == b[1:]


def same_batches(a, b) -> bool:
    return torch.equal(a.images, b.images) and a[1:] == b[1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return album(tmp_path_factory.mktemp("album"), 10, SHAPES)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """Ten images, of which 2, 5 and 6 are damaged."""
    folder = album(tmp_path_factory.mktemp("broken"), 10)
    damage = {"02.png": png(2)[:300], "05.png": b"", "06.png": b"<html>not found</html>"}
    return write(folder, damage)


# one image


def test_an_image_is_in_range_named_and_told(folder):
    item = Images(folder, size=16).item(0, 3)
    assert (item.prompt, item.name, item.original) == ("text 3", "03.png", (16, 24))
    assert (item.image.shape, item.image.dtype) == ((3, 16, 16), torch.float32)
    seen = np.asarray(picture(3))[:, 4:20]  # 24 wide, cut to its middle: nothing is resized
    assert torch.equal(item.image, torch.from_numpy(seen.astype(np.float32)).movedim(-1, 0) / 127.5 - 1)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("size", [(40, 16), (16, 40)])
def test_a_picture_covers_its_frame_is_mirrored_and_cut(size, share, mirrored):
    whole = np.asarray(picture(0, size))
    whole = whole[:, ::-1] if mirrored else whole
    wide = size == (40, 16)
    item = Source(
        png(0, size), Frame((16, 16), *(share, 0.3)[:: 1 if wide else -1], mirrored), None, "a"
    ).item()
    top, left = (0, int(share * 25)) if wide else (int(share * 25), 0)
    assert item.corner == (top, left)
    levels = ((item.image + 1) * 127.5).round().movedim(0, -1).numpy()
    assert np.array_equal(levels, whole[top : top + 16, left : left + 16])


@given(*[st.integers(1, 3000)] * 4)
def test_what_covers_a_frame_is_of_the_image_s_shape(w, h, wide, high):
    found = covering((w, h), (wide, high))
    assert found[0] >= wide and found[1] >= high and (found[0] == wide or found[1] == high)
    scale = max(wide / w, high / h)
    assert abs(found[0] - scale * w) <= 0.5 + 1e-6 and abs(found[1] - scale * h) <= 0.5 + 1e-6


def test_only_what_is_kept_is_resized_and_it_is_the_same_picture():
    """Two passes round each, perhaps in another order: 2 levels, where nothing is clipped between them."""
    rng, off = np.random.default_rng(0), []
    for _ in range(60):
        own, size = (tuple(rng.integers(*ends, 2).tolist()) for ends in ((3, 200), (3, 80)))
        (u, v), mirrored = rng.random(2).tolist(), bool(rng.integers(2))
        seen = Image.fromarray(rng.integers(80, 176, (*own[::-1], 3), np.uint8))
        file = io.BytesIO()
        seen.save(file, "PNG")
        item = Source(file.getvalue(), Frame(size, u, v, mirrored), None, "a").item()
        whole = np.asarray(seen.resize(covering(own, size), Image.Resampling.LANCZOS))
        whole = whole[:, ::-1] if mirrored else whole
        (w, h), (high, wide, _) = size, whole.shape
        top, left = int(v * (high - h + 1)), int(u * (wide - w + 1))
        assert item.corner == (top, left) and item.original == own[::-1]
        levels = ((item.image + 1) * 127.5).round().movedim(0, -1).numpy()
        off.append(np.abs(levels - whole[top : top + h, left : left + w]))
    assert max(map(np.max, off)) <= 2 and np.mean([each.mean() for each in off]) < 0.1


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000)])
def test_a_thin_picture_is_not_enlarged_as_a_whole(size, monkeypatch):
    resize = Image.Image.resize

    def few(image, size, *rest, **named):
        assert size == (64, 64)
        return resize(image, size, *rest, **named)

    monkeypatch.setattr(Image.Image, "resize", few)
    item = Source(png(0, size), Frame((64, 64), 0.7, 0.7), None, "a").item()
    at = int(0.7 * (2000 * 64 - 64 + 1))
    assert item.corner == ((0, at) if size[0] > 1 else (at, 0))
    middle = 32 - at % 64  # of the first pixel, which is 64 wide; half of one beside it
    line = item.image[:, 32] if size[0] > 1 else item.image[:, :, 32]
    colour = torch.tensor(np.asarray(picture(0, size)).reshape(-1, 3)[at // 64] / 127.5 - 1)
    assert (line[:, middle] - colour).abs().max() < 4 / 64


def test_pictures_are_read_as_everywhere_else():
    """Upright, transparent on white, from whatever is a picture to Pillow."""
    upright = picture(0, (16, 24))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn to the right
    lying, clear = io.BytesIO(), io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(lying, "PNG", exif=exif)
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(clear, "WEBP", lossless=True)
    item = Source(lying.getvalue(), Frame((16, 24)), None, "a").item()
    assert item.original == (24, 16)
    assert same_items(item, Source(png(0, (16, 24)), Frame((16, 24)), None, "a").item())
    assert torch.equal(
        Source(clear.getvalue(), Frame((16, 16)), None, "a").item().image, torch.ones(3, 16, 16)
    )


# what is random


def test_draws_differ_between_epochs_and_are_the_same_when_asked_again(folder):
    images = Images(folder, size=16, **EVERY)
    first = [images.item(0, i) for i in range(len(images))]
    again = [Images(folder, size=16, **EVERY).item(0, i) for i in reversed(range(len(images)))]
    assert all(map(same_items, first, reversed(again)))
    later = [images.item(1, i) for i in range(len(images))]
    other = [Images(folder, size=16, seed=1, **EVERY).item(0, i) for i in range(len(images))]
    for changed in (later, other):
        assert sum(map(same_items, first, changed)) < len(images) / 2


def test_draws_are_uniform_and_flips_as_often_as_asked():
    frames = [drawn((16, 16), "random", 0.3, 0, 1, epoch, i) for epoch in range(20) for i in range(100)]
    deviation = 1 / (12 * len(frames)) ** 0.5
    for numbers in ([frame.u for frame in frames], [frame.v for frame in frames]):
        assert np.mean(numbers) == pytest.approx(0.5, abs=4 * deviation)
    assert np.corrcoef([frame.u for frame in frames], [frame.v for frame in frames])[0, 1] < 0.1
    share = np.mean([frame.mirrored for frame in frames])
    assert share == pytest.approx(0.3, abs=4 * (0.21 / len(frames)) ** 0.5)
    assert {drawn((16, 16), "center", 0.0, i) for i in range(9)} == {Frame((16, 16))}


def test_torch_s_own_generator_is_left_alone(folder):
    before = torch.get_rng_state()
    next(iter(Batches(Images(folder, size=16, **EVERY), 4)))
    assert torch.equal(before, torch.get_rng_state())


# batches


@pytest.mark.parametrize("size", [1, 4, 10, 25])
def test_every_image_comes_once_in_each_epoch(folder, size):
    images = Images(folder, size=16)
    names = [name for batch in islice(Batches(images, size), -(-50 // size)) for name in batch.names]
    for epoch in range(5):
        part = names[10 * epoch : 10 * (epoch + 1)]
        assert part == [images.entries[i].name for i in images.order(epoch)]
        assert len(set(part)) == 10
    assert names[:10] != names[10:20]


@pytest.mark.parametrize("step", [None, 8])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_out_the_rows_of_one_batch(folder, world, step):
    images = Images(folder, size=16, buckets=step, **EVERY)
    one = Batches(images, 6)
    ranks = [Batches(images, 6, rank, world) for rank in range(world)]
    for k in range(8):
        every, parts = one[k], [rank[k] for rank in ranks]
        for row in range(6):
            part, own = parts[row % world], row // world
            assert torch.equal(part.images[own], every.images[row])
            assert [field[own] for field in part[1:5]] == [field[row] for field in every[1:5]]


@pytest.mark.parametrize("step", [None, 8])
def test_a_run_taken_up_again_goes_on_as_it_would_have(folder, step):
    images = Images(folder, size=16, buckets=step, **EVERY)
    run = list(islice(Batches(images, 3), 12))
    for start in (0, 1, 5, 11):
        fresh = Images(folder, size=16, buckets=step, **EVERY)
        tail = list(islice(Batches(fresh, 3, start=start), 12 - start))
        assert all(map(same_batches, tail, run[start:]))
    assert not same_batches(run[0], run[1])


def test_workers_change_nothing(broken):
    images = Images(broken, size=16, **EVERY)
    before = torch.get_rng_state()
    runs = [list(islice(Batches(images, 4, start=2, workers=workers), 6)) for workers in (0, 2)]
    assert all(map(same_batches, *runs))
    assert any(batch.bad for batch in runs[0])
    assert torch.equal(before, torch.get_rng_state())


def test_batches_are_a_dataset_that_can_be_spawned(folder):
    batches = Batches(Images(folder, size=16, **EVERY), 4)
    assert all(same_batches(pickle.loads(pickle.dumps(batches))[k], batches[k]) for k in range(3))
    loader = DataLoader(
        batches, sampler=range(2), batch_size=None, num_workers=1, collate_fn=tuple,
        multiprocessing_context="spawn",
    )  # fmt: skip
    for k, (images, *rest) in enumerate(loader):
        assert torch.equal(images, batches[k].images) and tuple(rest) == batches[k][1:]


# buckets


@pytest.mark.parametrize(("size", "step"), [(512, 64), (1024, 64), (768, 32), (64, 64), (16, 8)])
def test_buckets_are_multiples_of_the_step_and_of_about_one_area(size, step):
    sizes = buckets.sizes(size, step)
    assert (size, size) in sizes
    assert len(set(sizes)) == len(sizes)
    for w, h in sizes:
        assert w % step == h % step == 0
        assert abs(w * h / size**2 - 1) <= step / (2 * size) + 1e-9
        assert (h, w) in sizes
        assert max(w / h, h / w) <= 4 * (1 + step / size)
    assert all(a[0] / a[1] < b[0] / b[1] for a, b in pairwise(sizes))


def test_buckets_of_1024_are_among_those_of_podell_et_al():
    """2023, app. I, which has two lengths for most short sides."""
    some = {(512, 2048), (768, 1344), (832, 1280), (896, 1152), (1024, 1024), (1344, 768), (2048, 512)}
    assert some <= set(buckets.sizes(1024, 64))


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_an_image_goes_to_the_nearest_aspect_ratio(w, h):
    sizes = buckets.sizes(512, 64)

    def miss(size: buckets.Size) -> float:
        return abs(log(size[0] / size[1]) - log(w / h))

    assert miss(sizes[buckets.nearest((w, h), sizes)]) == min(map(miss, sizes))


@pytest.mark.parametrize(("size", "step"), [(100, 64), (32, 64)])
def test_a_size_between_steps_is_refused(size, step):
    with pytest.raises(InputError, match=r"is not a multiple of 64; try 64|step must be from 1 to 32"):
        buckets.sizes(size, step)


def test_a_batch_is_of_one_bucket_and_no_image_is_lost(folder):
    images = Images(folder, size=32, buckets=8)
    shapes = {entry.name: SHAPES[i % 3] for i, entry in enumerate(images.entries)}
    seen, sizes = dict.fromkeys(shapes, 0), set()
    batches = Batches(images, 3)
    total = complete(batches.counts, 3, 30)
    for batch in islice(batches, total):
        _, _, h, w = batch.images.shape
        sizes.add((w, h))
        for name in batch.names:
            seen[name] += 1
            assert (w, h) == images.sizes[buckets.nearest(shapes[name], images.sizes)]
    assert sizes == {images.sizes[b] for b in set(images.bucket.tolist())} and len(sizes) == 3
    assert set(seen.values()) <= {29, 30}  # those of the last epoch that fill no batch are still to come
    assert sum(seen.values()) == 3 * total


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), st.integers(1, 20))
def test_epochs_complete_every_batch_of_every_bucket_once(counts, size):
    found = [pair for epoch in range(12) for pair in plan(tuple(counts), size, 0, epoch)]
    assert len(found) == len(set(found)) == complete(counts, size, 12)
    for bucket, n in enumerate(counts):
        mine = [j for b, j in found if b == bucket]
        assert mine == list(range(12 * n // size))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), st.integers(1, 60))
def test_a_batch_is_found_by_its_number(counts, size):
    batches = Batches.__new__(Batches)
    batches.counts, batches.size = tuple(counts), size
    batches.images = Images.__new__(Images)
    batches.images.seed = 0
    every = ((epoch, *pair) for epoch in count() for pair in plan(tuple(counts), size, 0, epoch))
    assert [batches.place(k) for k in range(30)] == list(islice(every, 30))


# damaged images


@pytest.mark.parametrize("world", [1, 2])
def test_the_next_whole_image_takes_a_damaged_one_s_place(broken, caplog, world):
    images = Images(broken, size=16, **EVERY)
    batches = [Batches(images, 10, rank, world) for rank in range(world)]
    order = [images.entries[i].name for i in images.order(0)]
    whole = {name for name in order if name not in ("02.png", "05.png", "06.png")}
    wanted = [next(name for name in order[i:] + order[:i] if name in whole) for i in range(10)]
    with caplog.at_level(logging.WARNING, "ldm"):
        parts = [next(iter(rank)) for rank in batches]
    assert [parts[i % world].names[i // world] for i in range(10)] == wanted
    assert {name for part in parts for name in part.bad} == {"02.png", "05.png", "06.png"}
    assert "passed over: 02.png cannot be read as a picture" in caplog.text
    assert "passed over: 05.png cannot be read as a picture: it is damaged" in caplog.text


def test_each_damaged_image_is_told_once(broken, caplog):
    with caplog.at_level(logging.WARNING, "ldm"):
        list(islice(Batches(Images(broken, size=16), 10), 5))
    assert caplog.text.count("passed over") == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_images_are_an_error_that_names_the_first(broken, workers):
    images = Images(broken, size=16, most_bad=2)
    wanted = r"^3 images are damaged, more than most_bad 2; the first are: \d\d\.png cannot be read"
    with pytest.raises(InputError, match=wanted):
        list(islice(Batches(images, 5, workers=workers), 5))
    assert len(list(islice(Batches(Images(broken, size=16, most_bad=3), 5), 5))) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_damaged_images_ends(tmp_path, workers):
    images = Images(write(tmp_path, {"a.png": b"", "b.png": b"x"}), size=16)
    with pytest.raises(InputError, match=r"^none of the 2 images can be read; \w\.png cannot"):
        next(iter(Batches(images, 1, workers=workers)))


def half(number: int, size: tuple[int, int]) -> bytes:
    """The first half of a JPEG, which can be opened but not read."""
    data = io.BytesIO()
    picture(number, size).save(data, "JPEG")
    return data.getvalue()[: len(data.getvalue()) // 2]


def test_a_damaged_image_alone_in_its_bucket_is_passed_over(tmp_path, caplog):
    """With one of another bucket, cut to its size: for any rank, and for a run that is taken up again."""
    files = {f"{i}.png": png(i, (16, 16)) for i in range(8)}
    folder = write(tmp_path, {**files, "wide.jpg": half(9, (128, 32))})
    images = Images(folder, size=16, buckets=8, **EVERY)
    with caplog.at_level(logging.WARNING, "ldm"):
        run = list(islice(Batches(images, 3), 20))
    wide = [batch for batch in run if batch.images.shape == (3, 3, 8, 32)]
    assert len(wide) == 2 and caplog.text.count("passed over: wide.jpg cannot be read") == 1
    assert all(list(batch.bad) == ["wide.jpg"] and "wide.jpg" not in batch.names for batch in wide)
    assert not any(batch.bad for batch in run if batch.images.shape != (3, 3, 8, 32))
    assert len({name for batch in wide for name in batch.names}) > 1  # not always the same one
    for start in (4, 10, 19):
        tail = islice(Batches(images, 3, start=start), 20 - start)
        assert all(map(same_batches, tail, run[start:]))
    for k, batch in enumerate(run):
        for rank in range(3):
            (name,), (image,) = (part := Batches(images, 3, rank, 3)[k]).names, part.images
            assert name == batch.names[rank] and torch.equal(image, batch.images[rank])
    images.most_bad = 0
    with pytest.raises(InputError, match=r"^1 images are damaged, more than most_bad 0.*wide\.jpg cannot"):
        list(islice(Batches(images, 3), 20))


def test_only_where_no_bucket_has_a_whole_image_nothing_can_be_read(tmp_path):
    files = {"a.jpg": half(0, (128, 32)), "b.jpg": half(1, (64, 64)), "c.jpg": half(2, (32, 128))}
    images = Images(write(tmp_path, files), size=16, buckets=8)
    with pytest.raises(InputError, match=r"^none of the 3 images can be read; \w\.jpg cannot be read as a"):
        Batches(images, 1)[0]


def test_other_errors_than_damage_are_told_as_they_are(folder, broken):
    def made(source: Source) -> Item:
        raise InputError("a size that is not known")

    with pytest.raises(InputError, match=r"^a size that is not known$"):
        Batches(Images(folder, size=16), 2, made=made)[0]
    with pytest.raises(DamagedError):
        Images(broken, size=16).item(0, 5)


def test_with_buckets_what_cannot_be_opened_is_left_out_at_once(broken, caplog):
    with caplog.at_level(logging.WARNING, "ldm"):
        images = Images(broken, size=16, buckets=8)
    assert caplog.text.count("passed over") >= 2
    batch = Batches(images, 20)[0]
    assert not {"05.png", "06.png"} & set(batch.names) and "05.png" not in batch.bad
    with pytest.raises(InputError, match="images are damaged, more than most_bad 1"):
        Images(broken, size=16, buckets=8, most_bad=1)
    with pytest.raises(InputError, match="none of the 1 images can be read"):
        Images(write(broken / "all", {"a.png": b""}), size=16, buckets=8)


def test_an_image_that_has_gone_is_passed_over(tmp_path):
    images = Images(album(tmp_path, 3), size=16)
    (tmp_path / "01.png").unlink()
    batch = Batches(images, 3)[0]
    assert list(batch.bad) == ["01.png"] and "cannot be read: No such file" in batch.bad["01.png"]


# arguments

WRONG = {
    "size": ({"size": 0}, "size must be from 1"),
    "crop": ({"crop": "left"}, "crop must be one of center, random, not 'left'"),
    "flip": ({"flip": 1.5}, "flip must be a number from 0 to 1"),
    "seed": ({"seed": -1}, "seed must be from 0"),
    "buckets": ({"buckets": 0}, "step must be from 1 to 16"),
    "most_bad": ({"most_bad": -1}, "most_bad must be from 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_of_images_are_refused(folder, case):
    options, wanted = WRONG[case]
    with pytest.raises(InputError, match=wanted):
        Images(folder, **{"size": 16, **options})


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"size": 5, "world": 2}, "size 5 is not a multiple of world 2"),
        ({"size": 4, "rank": 2, "world": 2}, "rank must be from 0 to 1"),
        ({"size": 2, "world": 4}, "world must be from 1 to 2"),
        ({"size": 0}, "size must be from 1"),
        ({"size": 4, "start": -1}, "start must be from 0"),
    ],
)
def test_wrong_arguments_of_batches_are_refused(folder, options, wanted):
    with pytest.raises(InputError, match=wanted):
        Batches(Images(folder, size=16), **options)


def test_the_world_of_shapes_can_be_written_as_such_a_folder(tmp_path):
    for name in ("a", "b"):
        export_images(tmp_path / name, 5, seed=3)
    images = Images(tmp_path / "a", size=64)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert [(entry.name, entry.prompt) for entry in images.entries] == [
        (r["file_name"], r["text"]) for r in lines
    ]
    assert len(images) == 5 and len({entry.prompt for entry in images.entries}) > 1
    again = Images(tmp_path / "b", size=64)
    assert all(same_items(images.item(0, i), again.item(0, i)) for i in range(5))
    with pytest.raises(FileExistsError):
        export_images(tmp_path / "a", 5)
