"""What a call gives back, and what its pictures carry."""

import io
import json
import pickle
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from tests.tiny import PNG_SIDE

PROMPT = "a café; 猫: two, Steps: 3"


@pytest.fixture(scope="module")
def call(pipe):
    return lambda prompt=PROMPT, **options: pipe(prompt, **{"seed": 5, "progress": False} | options)


@pytest.fixture(scope="module")
def result(call):
    return call([PROMPT, "dog"], negative_prompt="ugly", num_images_per_prompt=2)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_a_result_is_a_sequence_of_its_images(result):
    assert len(result) == 4 == len(list(result)) and result[0] is result.images[0]
    assert result[-1] is result.images[3] and result[1:3] == result.images[1:3]
    assert result.images[2] in result
    with pytest.raises(IndexError):
        result[4]


def test_prompts_repeat_in_place_and_seeds_count_up(result):
    assert result.seeds == [5, 6, 7, 8] == result.parameters["seeds"]
    assert result.parameters["prompts"] == [PROMPT, PROMPT, "dog", "dog"]
    assert result.parameters["negative_prompts"] == ["ugly"] * 4


def test_output_types_have_their_shapes_types_and_ranges(call):
    np_, pt, pil, latent = (call(output_type=kind) for kind in ("np", "pt", "pil", "latent"))
    assert np_.images.shape == (1, PNG_SIDE, PNG_SIDE, 3) and np_.images.dtype == np.float32
    assert pt.images.shape == (1, 3, PNG_SIDE, PNG_SIDE) and pt.images.dtype == torch.float32
    assert np_.images.min() >= 0 and np_.images.max() <= 1
    assert isinstance(pil[0], Image.Image) and pil[0].size == (PNG_SIDE, PNG_SIDE) and pil[0].mode == "RGB"
    assert latent.images is None and latent[0].shape == (4, PNG_SIDE // 2, PNG_SIDE // 2)


def test_output_types_are_one_picture(call):
    np_, pt, pil, latent = (call(output_type=kind) for kind in ("np", "pt", "pil", "latent"))
    assert np.array_equal(np_.images, pt.images.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.asarray(pil[0]), (np_.images[0] * 255).round().astype(np.uint8))
    assert torch.equal(latent.latents, np_.latents)


def test_latents_decode_to_the_images(pipe, call):
    result = call(output_type="pt")
    assert torch.allclose(pipe.decode(result.latents).detach() / 2 + 0.5, result.images, atol=1e-6)


def test_a_png_carries_its_parameters_as_json(result):
    texts = png(result[1]).text
    said = json.loads(texts["ldm"])
    assert said == {
        "prompt": PROMPT,
        "negative_prompt": "ugly",
        "seed": 6,
        "num_inference_steps": 4,
        "guidance_scale": 7.5,
        "sampler": "ddim",
        "eta": 0.0,
        "width": PNG_SIDE,
        "height": PNG_SIDE,
        "family": "sd1",
    }


def test_a_png_carries_its_parameters_as_the_web_ui_writes_them(result):
    assert png(result[1]).text["parameters"].split("\n") == [
        PROMPT,
        "Negative prompt: ugly",
        f"Steps: 4, Sampler: ddim, CFG scale: 7.5, Seed: 6, Size: {PNG_SIDE}x{PNG_SIDE}, Model: sd1",
    ]


def test_a_missing_negative_prompt_has_no_line(call):
    assert "Negative" not in png(call("dog")[0]).text["parameters"]


def test_the_parameters_of_a_png_make_the_same_picture_again(pipe, result):
    said = json.loads(png(result[2]).text["ldm"])
    del said["family"], said["eta"]
    (again,) = pipe(**said, progress=False)
    assert np.abs(np.asarray(again, int) - np.asarray(result[2], int)).max() <= 1  # a rounding of 1/255


def test_a_jpeg_is_saved_too(result, tmp_path):
    result[0].save(tmp_path / "a.jpg")
    assert Image.open(tmp_path / "a.jpg").size == (PNG_SIDE, PNG_SIDE)


@pytest.mark.parametrize("copied", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_result_keeps_everything(result, copied):
    again = copied(result)
    assert again.images[1].parameters == result.images[1].parameters and again.parameters == result.parameters
    assert png(again[1]).text == png(result[1]).text and again[1].tobytes() == result[1].tobytes()


def test_a_type_checker_lets_images_be_saved():
    """`pipe("…").images[0].save("a.png")`: which kind of images a call gives depends on its arguments."""
    assert get_type_hints(ldm.Result)["images"] is Any
    assert ldm.Result.__orig_bases__ == (Sequence[Any],)


def test_pictures_are_ordinary_pil_images(result):
    half = result[0].resize((4, 4))
    assert half.size == (4, 4) and result[0].copy().tobytes() == result[0].tobytes()


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_a_result_draws_itself_as_a_grid(call, kind):
    result = call([PROMPT] * 3, output_type=kind)
    assert result.grid().size == (2 * PNG_SIDE, 2 * PNG_SIDE)
    assert Image.open(io.BytesIO(result._repr_png_())).size == (2 * PNG_SIDE, 2 * PNG_SIDE)


def test_a_grid_keeps_every_picture_in_reading_order(result):
    sheet, side = np.asarray(result.grid()), PNG_SIDE
    for i, image in enumerate(result):
        row, column = divmod(i, 2)
        part = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert np.array_equal(part, np.asarray(image))


def test_latents_alone_draw_nothing_and_say_why(call):
    result = call(output_type="latent")
    assert result._repr_png_() is None and "1 latents" in repr(result)
    with pytest.raises(ValueError, match=r"pipe\.decode"):
        result.grid()


def test_a_result_prints_as_one_line(result):
    assert repr(result) == "Result(4 images, latents [4, 4, 8, 8], seeds [5, 6, 7, 8])"
