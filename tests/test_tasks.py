"""Walking back from images, editing them, and going from one to another: on random and on trained weights."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import ldm
from ldm.circle import slerp
from ldm.errors import InputError
from tests.reduced import make as reduced
from tests.tiny import error, hooked, unit_noise

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def trained():
    return ldm.load()


def psnr(a, b):
    return float(-10 * np.log10(np.mean((np.asarray(a) / 255.0 - np.asarray(b) / 255.0) ** 2)))


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["a large red circle on a navy background", "two small green stars"])
def test_an_inverted_image_is_drawn_again(trained, prompt):
    image = trained(prompt, seed=5, **QUIET)[0]
    found = ldm.invert(trained, image, prompt)
    again = trained(prompt, latents=found.latents, guidance_scale=1, sampler=found.sampler, **QUIET)
    z = trained.encode(torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 127.5 - 1)
    assert max(found.misses) < 1e-2 and error(again.latents, z) < 2e-2 and psnr(again[0], image) > 35
    usual = ldm.invert(trained, image, prompt, rounds=1)
    back = trained(prompt, latents=usual.latents, guidance_scale=1, sampler=usual.sampler, **QUIET)
    assert error(back.latents, z) > 3 * error(again.latents, z)
    assert psnr(again[0], image) > psnr(back[0], image)
    assert 0.7 < float(found.latents.std()) < 1.3


def test_an_edit_keeps_what_both_prompts_say(trained):
    old, new = "a large red circle on a beige background", "a large blue circle on a beige background"
    image = trained(old, seed=2, **QUIET)[0]
    edited = ldm.edit(trained, image, old, new, guidance_scale=3, **QUIET)[0]
    other = trained(new, seed=7, **QUIET)[0]
    ground = lambda picture: np.asarray(picture)[:6, :6].astype(float)  # noqa: E731
    assert np.abs(ground(edited) - ground(image)).mean() < 12
    assert psnr(edited.convert("L"), image.convert("L")) > psnr(other.convert("L"), image.convert("L"))
    middle = np.asarray(edited, float).reshape(-1, 3)
    blue = (middle[:, 2] > middle[:, 0] + 60).mean()
    assert blue > 0.05  # of all pixels: the circle is blue now


def test_interpolation_begins_and_ends_at_the_plain_images(pipe):
    options = {"num_inference_steps": 3, "output_type": "latent", **QUIET}
    way = ldm.interpolate(pipe, "a cat", (3, 8), 5, **options).latents
    assert way.shape[0] == 5
    for i, seed in ((0, 3), (4, 8)):
        assert error(way[i : i + 1], pipe("a cat", seed=seed, **options).latents) <= 1e-5
    steps = [error(a, b) for a, b in pairwise(way)]
    assert min(steps) > 0 and error(way[0], way[4]) > max(steps)  # it goes, and not in circles


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m_sde", "plms"])
def test_a_way_between_prompts_and_seeds_begins_and_ends_at_the_plain_images(pipe, name):
    options = {"num_inference_steps": 3, "output_type": "latent", "sampler": name, **QUIET}
    way = ldm.interpolate(pipe, ("a cat", "two red dogs"), (3, 8), 5, **options).latents
    for i, (prompt, seed) in {0: ("a cat", 3), 4: ("two red dogs", 8)}.items():
        assert error(way[i : i + 1], pipe(prompt, seed=seed, **options).latents) <= 1e-5
    steps = [error(a, b) for a, b in pairwise(way)]
    assert min(steps) > 0.05 and error(way[0], way[4]) > max(steps)


@pytest.mark.parametrize("output", ["pil", "np", "pt", "latent"])
def test_a_way_is_the_same_in_one_batch_and_in_several(pipe, output):
    options = {"num_inference_steps": 2, "output_type": output, **QUIET}
    one, several = (ldm.interpolate(pipe, "a cat", (3, 8), 5, batch=batch, **options) for batch in (5, 1))
    assert error(several.latents, one.latents) <= 1e-5 and len(several) == 5
    assert type(several.images) is type(one.images) and several.parameters == one.parameters


@pytest.mark.parametrize(("name", "prompts"), [("ldm-celeba256", None), ("ldm-cin256", (3, 7))])
def test_models_that_hear_classes_or_nothing_have_ways_too(name, prompts):
    family = reduced(name)
    options = {"num_inference_steps": 2, "output_type": "latent", **QUIET}
    way = ldm.interpolate(family, prompts, (1, 2), 3, **options).latents
    last = family(prompts[1] if prompts else None, seed=2, **options).latents
    assert error(way[2:], last) <= 1e-5 and error(way[1:2], last) > 0.01


def test_a_frame_tells_how_it_is_drawn_again(pipe, tmp_path):
    options = {"num_inference_steps": 2, **QUIET}
    way = ldm.interpolate(pipe, ("a cat", "a dog"), (3, 8), 5, **options)
    way[2].save(tmp_path / "a.png")
    said = ldm.parameters(tmp_path / "a.png")
    assert (said["prompt"], said["blend_prompt"], said["blend"]) == ("a cat", "a dog", 0.5)
    assert (said["seed"], said["variation_seed"], said["variation_strength"]) == (3, 8, 0.5)
    assert error(pipe.from_png(tmp_path / "a.png", **QUIET).latents, way.latents[2:3]) <= 1e-5
    assert way.parameters["blend"] == [0, 0.25, 0.5, 0.75, 1] and way.parameters["blend_prompt"] == "a dog"


@pytest.mark.parametrize("prompts", [("a dog", " ".join(["cat"] * 60)), (" ".join(["cat"] * 60), "a dog")])
def test_the_ends_of_a_way_between_prompts_of_unlike_length_are_the_plain_images(pipe, prompts):
    options = {"num_inference_steps": 2, "output_type": "latent", **QUIET}
    way = ldm.interpolate(pipe, prompts, 1, 3, **options).latents
    for i, prompt in ((0, prompts[0]), (2, prompts[1])):
        assert error(way[i : i + 1], pipe(prompt, seed=1, **options).latents) <= 1e-5


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple, lambda x: range(x[0], x[1] + 1)])
def test_ends_are_given_as_anything_of_two(pipe, kind):
    options = {"num_inference_steps": 1, "output_type": "latent", **QUIET}
    assert (
        error(
            ldm.interpolate(pipe, "a", kind([3, 4]), 3, **options).latents[2:],
            pipe("a", seed=4, **options).latents,
        )
        <= 1e-5
    )


def test_sizes_that_sdxl_is_told_stay_on_the_way():
    sdxl = reduced("sdxl")
    seen = []
    with hooked(sdxl.unet, lambda module, args, out: seen.append(args[3])):
        ldm.interpolate(sdxl, ("a cat", "two dogs"), 1, 3, num_inference_steps=1, guidance_scale=1, **QUIET)
    (vector,) = seen
    n = sdxl.family.texts[-1].pooled
    assert torch.equal(vector[0, n:], vector[1, n:]) and not torch.equal(vector[0, :n], vector[1, :n])


def test_what_a_file_cannot_hold_is_asked_for(pipe, tmp_path):
    image, latents = np.zeros((16, 16, 3)), unit_noise(1, 1, 4, 8, 8)
    mask = np.ones((16, 16))
    for given in ({"image": image}, {"image": image, "mask_image": mask}, {"latents": latents}):
        drawn = pipe("a", seed=1, num_inference_steps=2, **given, **QUIET)
        drawn[0].save(tmp_path / "a.png")
        with pytest.raises(InputError, match=f"was drawn from {' and '.join(given)}"):
            pipe.from_png(tmp_path / "a.png", **QUIET)
        again = pipe.from_png(tmp_path / "a.png", **given, **QUIET)
        assert error(again.latents, drawn.latents) <= 1e-5


def test_an_edit_inverts_with_what_it_draws_with(trained):
    prompt = "a large red circle on a navy background"
    image = trained(prompt, seed=5, **QUIET)[0]
    same = ldm.edit(trained, image, prompt, prompt, clip_skip=1, seed=3, **QUIET)
    assert psnr(same[0], image) > 30 and same[0].parameters["task"] == "edit"


def test_variations_go_from_the_image_to_that_of_the_other_seed(pipe):
    options = {"num_inference_steps": 3, "output_type": "latent", "sampler": "ddpm", **QUIET}
    plain, other = (pipe("a cat", seed=seed, **options).latents for seed in (3, 21))
    offs = []
    for strength in (0, 0.1, 0.4, 1):
        some = ldm.vary(pipe, "a cat", 3, 2, strength, variation_seed=20, **options)
        offs.append(error(some.latents[1:], plain))
        assert some.seeds == [3, 3]
    assert offs[0] <= 1e-5 and offs == sorted(offs) and error(some.latents[1:], other) <= 1e-5
    assert some.parameters["variation_seed"] == [20, 21]


def test_a_blend_with_a_longer_prompt_has_its_chunks(pipe):
    long = " ".join(["cat"] * 40)
    options = {"num_inference_steps": 2, "output_type": "latent", "seed": 1, **QUIET}
    ends = [pipe("a dog", blend_prompt=long, blend=share, **options).latents for share in (0.999, 1.0)]
    assert error(ends[1], pipe(long, **options).latents) <= 1e-5
    assert error(ends[0], ends[1]) < 0.05


def test_between_two_noises_there_is_noise():
    a, b = unit_noise(0, 4, 64, 64), unit_noise(1, 4, 64, 64)
    for share in (0.25, 0.5, 0.75):
        assert float(slerp(a, b, share).std()) == pytest.approx(1, abs=0.02)
    assert torch.equal(slerp(a, b, 0), a) and torch.equal(slerp(a, b, 1), b)
    assert error(slerp(a, a, 0.3), a) <= 1e-6
    assert error(slerp(a, b, 0.3), slerp(b, a, 0.7)) <= 1e-6


def test_images_from_philox_noise_are_others_and_the_same_alone(pipe):
    options = {"num_inference_steps": 3, "output_type": "latent", "sampler": "ddpm", **QUIET}
    both = pipe("a cat", seed=3, num_images_per_prompt=2, noise="philox", **options)
    assert error(both.latents[1:], pipe("a cat", seed=4, noise="philox", **options).latents) <= 1e-5
    assert error(both.latents[:1], pipe("a cat", seed=3, **options).latents) > 0.1
    assert both.parameters["noise"] == "philox"


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda p: ldm.invert(p, None), "image"),
        (lambda p: ldm.invert(p, "cat.png"), "image"),
        (lambda p: ldm.invert(p, np.zeros((16, 16, 3)), rounds=0), "rounds"),
        (lambda p: ldm.invert(p, np.zeros((16, 16, 3)), num_inference_steps=0), "num_inference_steps"),
        (lambda p: ldm.edit(p, np.zeros((16, 16, 3)), "a", 3), "prompt"),
        (lambda p: ldm.edit(p, np.zeros((16, 16, 3)), "a", "b", sampler="euler"), "sampler"),
        (lambda p: ldm.interpolate(p, "a", (1, 2), 4, seed=3), "seed"),
        (lambda p: ldm.interpolate(p, "a", (1, 2), 1), "frames"),
        (lambda p: ldm.interpolate(p, "a", (1, 2), 4, blend=0.3), "blend"),
        (lambda p: ldm.interpolate(p, "a", (1,), 4), "seeds"),
        (lambda p: ldm.interpolate(p, "a", (1, "b"), 4), "seed"),
        (lambda p: ldm.interpolate(p, ["a"], (1, 2), 4), "prompt"),
        (lambda p: ldm.vary(p, "a", 1, 0), "number"),
        (lambda p: ldm.vary(p, "a", None), "seed"),
        (lambda p: ldm.vary(p, "a", 1, variation_strength=1.2), "variation_strength"),
        (lambda p: ldm.vary(p, "a", 1, variation_strength=None), "variation_strength"),
        (lambda p: ldm.invert(p, np.zeros((16, 16, 3)), ["a", "b"]), "prompt must be one"),
        (lambda p: ldm.invert(p, np.zeros((16, 16, 3)), "a", tolerance=None), "tolerance"),
        (lambda p: ldm.invert(p, np.zeros((16, 16, 3)), "a", tile=7), "tile"),
        (lambda p: ldm.invert(p, np.zeros((16, 16, 3)), "a", guidance_scale=2), "guidance_scale is decided"),
        (lambda p: ldm.invert(p, np.zeros((16, 16, 3)), "a", clip_scip=2), "did you mean 'clip_skip'"),
        (lambda p: ldm.edit(p, np.zeros((16, 16, 3)), "a", "b", blend=0.5), "blend is decided"),
        (lambda p: p("a", variation_seed=1), "variation_seed needs variation_strength"),
        (lambda p: p("a", variation_strength=[0.1, 0.2]), "variation_strength has 2 numbers for 1 images"),
        (lambda p: p("a", blend=0.5), "blend_prompt"),
        (lambda p: p("a", blend_prompt="b"), "blend_prompt"),
        (lambda p: p("a", blend_prompt=["b", "c"], blend=0.5), "blend_prompt has 2 texts for 1 prompts"),
        (lambda p: p("a", blend_prompt="b", blend="c"), "blend must be a number"),
        (lambda p: p("a", noise="cuda"), "noise must be one of torch, philox"),
    ],
)
def test_wrong_ways_are_refused(pipe, call, word):
    with pytest.raises(InputError, match=word):
        call(pipe)
