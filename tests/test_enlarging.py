"""More around a picture, more pixels of it, two passes: on random and on trained weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ldm
from ldm.enlarging import consistent
from ldm.errors import InputError
from tests.reduced import make as reduced
from tests.tiny import error, make, unit_noise

QUIET = {"progress": False}
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipe():
    return make()


@pytest.mark.parametrize("form", [Image.fromarray, np.array, lambda x: torch.tensor(x).permute(2, 0, 1)])
def test_outpainting_keeps_every_pixel_and_adds_the_rest(pipe, form):
    out = ldm.outpaint(pipe, form(PICTURE), "a cat", left=3, right=1, top=8, seed=1, **QUIET)
    after = np.asarray(out[0])
    assert after.shape == (24, 16, 3) and np.array_equal(after[8:, 3:15], PICTURE)
    other = ldm.outpaint(pipe, form(PICTURE), "a dog", left=3, right=1, top=8, seed=1, **QUIET)
    assert not np.array_equal(np.asarray(other[0])[:8], after[:8])


@pytest.mark.parametrize("name", ["sd1-inpaint", "ldm-inpaint"])
def test_models_made_for_repainting_keep_every_pixel_too(name):
    made = reduced(name)
    side, unit = made.family.size, made.family.unit
    known = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    prompt = "a cat" if made.family.texts else None
    out = ldm.outpaint(made, known, prompt, left=unit, seed=1, num_inference_steps=2, **QUIET)
    assert np.array_equal(np.asarray(out[0])[:, unit:], known) and out[0].parameters["task"] == "outpaint"


def test_projecting_back_gives_the_means_of_the_small_picture():
    small = unit_noise(0, 1, 3, 8, 8).clamp(-0.9, 0.9)
    images = F.interpolate(small, scale_factor=2, mode="bicubic").clamp(-1, 1) + 0.3 * unit_noise(
        1, 2, 3, 16, 16
    )
    found = consistent(images.clamp(-1, 1), small)
    assert error(F.avg_pool2d(found, 2), small.expand(2, -1, -1, -1)) < 0.02
    assert error(F.avg_pool2d(images, 2), small.expand(2, -1, -1, -1)) > 0.2
    assert torch.equal(consistent(found.clone(), F.avg_pool2d(found, 2)[:1])[:1], found[:1])


@pytest.mark.parametrize("scale", [2, 3])
def test_an_enlarged_picture_shrinks_to_the_small_one(pipe, scale):
    small = Image.fromarray(PICTURE).resize((8, 8)).resize((16, 16))  # smooth
    large = ldm.upscale(
        pipe, small, "a cat", scale=scale, strength=0.5, num_images_per_prompt=2, seed=1, **QUIET
    )
    assert len(large) == 2 and large[0].size == (16 * scale, 16 * scale)
    for image in large:
        again = np.asarray(image.resize((16, 16), Image.Resampling.BOX), float)
        assert np.abs(again - np.asarray(small, float)).mean() < 3
    assert not np.array_equal(np.asarray(large[0]), np.asarray(large[1]))
    assert large.parameters["task"] == "upscale" and large.parameters["scale"] == scale


def test_two_passes_are_a_plain_one_and_image_to_image(pipe):
    options = {"num_inference_steps": 4, **QUIET}
    found = ldm.hires(pipe, ["a cat", "a dog"], scale=1.5, strength=0.5, seed=3, **options)
    assert [image.size for image in found] == [(24, 24)] * 2 and found.seeds == [3, 4]
    first = pipe("a dog", seed=4, output_type="pt", **options).images
    large = F.interpolate(first, (24, 24), mode="bicubic", antialias=True).clamp(0, 1)
    by_hand = pipe("a dog", image=2 * large - 1, height=24, width=24, strength=0.5, seed=4, **options)
    assert error(found.latents[1:], by_hand.latents) <= 1e-4
    assert found.parameters["prompts"] == ["a cat", "a dog"] and found[1].parameters["scale"] == 1.5


def test_both_passes_have_the_same_ways(pipe):
    options = {"num_inference_steps": 2, "seed": 1, "variation_strength": 1.0, **QUIET}
    two = ldm.hires(pipe, "a", variation_seed=5, num_images_per_prompt=2, **options)
    alone = ldm.hires(pipe, "a", variation_seed=6, **options | {"seed": 2})
    assert two.parameters["variation_seed"] == [5, 6] and two.seeds == [1, 2]
    assert error(two.latents[1:], alone.latents) <= 1e-4
    lists = ldm.hires(pipe, "a", blend_prompt="b", blend=[0.2, 0.7], num_images_per_prompt=2, seed=1, **QUIET)
    assert lists.parameters["blend"] == [0.2, 0.7]


def test_sizes_are_refused_before_anything_is_made(pipe, monkeypatch):
    for name in ("interpolate", "pad"):
        monkeypatch.setattr(F, name, lambda *a, **b: pytest.fail("it was made"))
    huge = np.zeros((2048, 2048, 3), np.uint8)
    for call in (
        lambda: ldm.upscale(pipe, huge, scale=8),
        lambda: ldm.outpaint(pipe, huge, "a", left=8000),
        lambda: ldm.hires(pipe, "a", height=2048, scale=8),
    ):
        with pytest.raises(InputError, match="8192"):
            call()


def test_a_turbo_enlarges_in_as_many_steps_as_it_takes():
    turbo = reduced("sd-turbo")
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert ldm.upscale(turbo, small, seed=1, **QUIET)[0].size == (64, 64)


def test_a_picture_made_by_a_task_says_so(pipe, tmp_path):
    image = ldm.hires(pipe, "a cat", seed=1, num_inference_steps=2, **QUIET)[0]
    image.save(tmp_path / "a.png")
    assert ldm.parameters(tmp_path / "a.png")["task"] == "hires"
    with pytest.raises(InputError, match=r"made by ldm.hires"):
        pipe.from_png(tmp_path / "a.png")


@pytest.mark.parametrize("output", ["np", "pt", "pil", "latent"])
def test_tasks_give_what_is_asked_for(pipe, output):
    options = {"output_type": output, "num_inference_steps": 2, **QUIET}
    two = ldm.hires(pipe, "a cat", seed=1, **options)
    shapes = {"np": (1, 32, 32, 3), "pt": (1, 3, 32, 32)}
    assert output not in shapes or tuple(two.images.shape) == shapes[output]
    assert output != "latent" or (two.images is None and two.latents.shape[-1] == 16)
    assert output != "pil" or isinstance(two[0], Image.Image)


def test_models_made_for_it_enlarge_by_themselves():
    upscaler = reduced("sd-x4-upscaler")
    small = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    options = {"num_inference_steps": 2, "seed": 1, "output_type": "latent", **QUIET}
    found, plain = ldm.upscale(upscaler, small, "a cat", **options), upscaler("a cat", image=small, **options)
    assert torch.equal(found.latents, plain.latents)
    with pytest.raises(InputError, match="enlarges 4 times"):
        ldm.upscale(upscaler, small, "a cat", scale=2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: ldm.outpaint(p, PICTURE, "a"), "nothing is added"),
        (lambda p: ldm.outpaint(p, PICTURE, "a", left=-4), "left must be from 0"),
        (lambda p: ldm.outpaint(p, PICTURE, "a", left=3), "width 15 is not a multiple"),
        (lambda p: ldm.outpaint(p, PICTURE, "a", left=4, strength=0.5), "strength is decided"),
        (lambda p: ldm.outpaint(p, "a.png", "a", left=4), "image"),
        (lambda p: ldm.upscale(p, None), "image"),
        (lambda p: ldm.upscale(p, PICTURE, scale=1), "scale must be from 2 to 8"),
        (lambda p: ldm.upscale(p, PICTURE, scale=2.5), "scale must be a whole number"),
        (lambda p: ldm.upscale(p, PICTURE, output_type="latent"), "output_type"),
        (lambda p: ldm.upscale(p, PICTURE, height=64), "height is decided"),
        (lambda p: ldm.hires(p, "a", scale=0.5), "scale must be a number from 1 to 8"),
        (lambda p: ldm.hires(p, "a", image=PICTURE), "image is decided"),
        (lambda p: ldm.hires(p, "a", output_type="gif"), "output_type"),
    ],
)
def test_wrong_ways_are_refused(pipe, call, words):
    with pytest.raises(InputError, match=words):
        call(pipe)
