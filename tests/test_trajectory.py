"""What a recorded call keeps, and the pictures that can be made of it."""

import pytest
import torch
from PIL import Image

import ldm
from ldm.errors import InputError
from ldm.motion import animate
from tests.tiny import PNG_SIDE, error

OPTIONS = {"seed": [3, 4], "num_images_per_prompt": 2, "num_inference_steps": 5, "progress": False}


@pytest.fixture(scope="module")
def result(pipe):
    return pipe("a cat", record=True, **OPTIONS)


def test_recording_changes_nothing_and_is_not_done_unasked(pipe, result):
    plain = pipe("a cat", **OPTIONS)
    assert torch.equal(plain.latents, result.latents) and plain.trajectory is None


def test_each_moment_holds_the_equation(pipe, result):
    path = ldm.sampler("ddim").path(pipe.family.schedule, 5, pipe.family.spacing, pipe.family.last)
    assert [moment.level for moment in result.trajectory] == list(path[:-1])
    for moment in result.trajectory:
        level = moment.level
        assert moment.x.shape == (2, 4, 8, 8)
        assert error(level.alpha * moment.x0 + level.sigma * moment.eps, moment.x) <= 1e-6
    last, end = result.trajectory[-1], path[-1]
    assert error(end.alpha * last.x0 + end.sigma * last.eps, result.latents) <= 1e-5  # DDIM's last step


def test_the_first_moment_is_the_start(pipe, result):
    noise = ldm.Noise([3, 4], (4, 8, 8))()
    assert torch.equal(result.trajectory[0].x, noise)


def test_pictures_sheet_and_notebook(pipe, result):
    trajectory = result.trajectory
    pictures = trajectory.images(row=1)
    assert len(pictures) == len(trajectory) == 5 and pictures[0].size == (PNG_SIDE, PNG_SIDE)
    assert trajectory.sheet().size == (3 * PNG_SIDE, 2 * PNG_SIDE)
    assert trajectory._repr_png_().startswith(b"\x89PNG")
    assert "5 steps, t from 801 to 1" in repr(trajectory)
    alone = pipe("a cat", seed=4, num_inference_steps=5, progress=False, record=True).trajectory.images()[-1]
    assert max(abs(a - b) for a, b in zip(alone.tobytes(), pictures[-1].tobytes(), strict=True)) <= 1


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_a_moving_picture_has_all_frames_in_order(tmp_path, suffix):
    frames = [Image.new("RGB", (9, 7), color) for color in ("red", "lime", "blue")]
    animate(frames, tmp_path / f"a{suffix}", seconds=0.05, rest=4)
    with Image.open(tmp_path / f"a{suffix}") as found:
        assert found.n_frames == 3
        pauses = []
        for i, frame in enumerate(frames):
            found.seek(i)
            assert found.convert("RGB").getpixel((4, 4)) == frame.getpixel((4, 4))
            pauses.append(found.info["duration"])
    assert pauses == [50, 50, 200]
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_the_trajectory_is_saved_as_one(result, tmp_path):
    result.trajectory.save(tmp_path / "way.gif")
    with Image.open(tmp_path / "way.gif") as found:
        assert found.is_animated


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda t, p: t.save(p / "a.jpg"), "must end in"),
        (lambda t, p: t.save(p / "no" / "a.gif"), "cannot be written"),
        (lambda t, p: t.save(p / "a.gif", seconds=-1), "seconds"),
        (lambda t, p: t.images("y"), "what"),
        (lambda t, p: t.images(row=2), "row"),
        (lambda t, p: animate([], p / "a.gif"), "at least one"),
        (lambda t, p: animate([Image.new("RGB", (2, 2)), Image.new("RGB", (3, 2))], p / "a.gif"), "one size"),
    ],
)
def test_wrong_ways_are_refused(result, tmp_path, call, word):
    with pytest.raises(InputError, match=word):
        call(result.trajectory, tmp_path)
    assert not list(tmp_path.iterdir())
