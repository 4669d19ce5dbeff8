"""The rows of a run: the same whatever parts a batch is in, and the same images when it goes on."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

import ldm
from ldm.errors import InputError
from ldm.training.rows import in_parts, rows_of, some_rows
from tests.training.albums import album
from tests.training.runs import is_sentence, losses, place, told, train

SIZES = ((24, 16), (16, 24), (16, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = place(tmp_path_factory.mktemp("rows"))
    album(folder / "mixed", 12, SIZES)
    return folder


def settings(folder, **more):
    data = {"path": str(folder / "mixed"), "buckets": 8, **more.pop("data", {})}
    return told(folder, folder / "run", **more, data=data)


@pytest.fixture(scope="module")
def pipe(folder):
    return ldm.load(folder / "model")


def joined(batches):
    """Names and pictures of the rows, one after another."""
    rows = [(name, image) for batch in batches for name, image in zip(batch.names, batch.images, strict=True)]
    return [name for name, _ in rows], [image for _, image in rows]


@pytest.mark.parametrize("first", [0, 2, 5])
def test_a_batch_in_parts_is_the_batch(folder, pipe, first):
    whole = rows_of(settings(folder), pipe)
    parts = rows_of(settings(folder, accumulate=2), pipe)
    assert (whole.parts, parts.parts, whole.images) == (1, 2, 12) and whole.digest == parts.digest
    names, images = joined(islice(whole(first), 4))
    again, same = joined(islice(parts(2 * first), 8))
    assert names == again and all(map(torch.equal, images, same))
    middle, _ = joined(islice(parts(2 * first + 1), 7))  # as a loop never begins, but may
    assert middle == names[2:]


def test_losses_do_not_depend_on_parts_with_sizes_of_all_shapes(folder, tmp_path):
    found = []
    for parts in (1, 2):
        run = replace(settings(folder, accumulate=parts, steps=3), out=str(tmp_path / str(parts)))
        train(run)
        found.append(losses(run.out))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_parts_of_what_does_not_divide(folder, pipe):
    batch = next(rows_of(settings(folder, batch=5, data={"buckets": 0}), pipe)(0))
    parts = list(in_parts(batch, 2))
    assert [len(part.names) for part in parts] == [2, 2, 1]
    assert [name for part in parts for name in part.names] == batch.names
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)


def test_looks_see_squares_of_other_data(folder, pipe, tmp_path):
    album(tmp_path / "others", 3)
    batch = next(some_rows(settings(folder), pipe, 2, str(tmp_path / "others")))
    assert batch.images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("change", ["image", "caption"])
def test_a_run_goes_on_with_its_images_alone(folder, tmp_path, change):
    data = album(tmp_path / "album", 6)
    run = told(folder, tmp_path / "run", steps=1, data={"path": str(data)})
    train(run)
    table = data / "metadata.jsonl"
    if change == "image":
        (data / "05.png").unlink()
        table.write_text("\n".join(table.read_text().splitlines()[:5]))
    else:
        table.write_text(table.read_text().replace("text 3", "text three"))
    with pytest.raises(InputError, match=r"data\.names and captions: was") as caught:
        train(replace(run, steps=2))
    assert is_sentence(caught.value) and ("data.images: was 6, is 5" in str(caught.value)) == (
        change == "image"
    )


REFUSED = {
    "buckets that a model has no size for": (
        {"data": {"buckets": 3}},
        r"data\.buckets 3 is not a multiple of 2",
    ),
    "a size that it has not": ({"data": {"size": 15, "buckets": 0}}, r"data\.size 15 is not a multiple of 2"),
    "buckets of shards": ({"data": {"path": "a.tar"}}, r"data\.buckets are for folders"),
    "workers of shards": ({"data": {"path": "a.tar", "buckets": 0, "workers": 2}}, r"data\.workers are for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_rows(folder, pipe, name):
    more, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as caught:
        rows_of(settings(folder, **more), pipe)
    assert is_sentence(caught.value)
