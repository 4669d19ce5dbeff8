"""What a PNG file tells of how it was made."""

import io
import json
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import ldm
from ldm.errors import InputError
from ldm.image import Picture
from ldm.parameters import MOST_TEXT, SCHEDULES, SOLVERS, arguments, parameters
from ldm.schedulers.samplers import SAMPLERS
from ldm.schedulers.spacing import SPACINGS
from tests.reduced import make as reduced

OURS = {
    "prompt": "a cat", "negative_prompt": None, "seed": 1, "num_inference_steps": 4, "guidance_scale": 7.5,
    "sampler": "euler", "eta": 0.0, "width": 16, "height": 16, "family": "tiny",
}  # fmt: skip


def png(**texts):
    """The bytes of a PNG file with texts."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)  # as the web UI does: iTXt where Latin-1 is not enough
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read(**texts):
    return parameters(Image.open(io.BytesIO(png(**texts))))


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def put(data, at, *chunks):
    """The bytes of a PNG file with chunks before the first one of a kind."""
    place = data.index(at) - 4
    return data[:place] + b"".join(chunks) + data[place:]


def file(tmp_path, data):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "told",
    [
        {"prompt": "a cat"},
        {"prompt": 'café; 猫 "two", Steps: 3\nNegative prompt: no', "negative_prompt": "ugly\nold"},
        {"prompt": "", "negative_prompt": "", "seed": 2**62, "guidance_scale": 1.1},
        {"prompt": "x", "width": 32, "height": 8, "num_inference_steps": 7},
        *({"prompt": "x", "sampler": name} for name in SAMPLERS),
        {"prompt": "x", "sampler": ldm.sampler("euler_ancestral", eta=0.3)},
        {"prompt": "x", "denoising_end": 0.5, "guidance_scale": -2},
    ],
    ids=lambda told: ", ".join(f"{k} {getattr(v, 'name', v)}" for k, v in told.items()),
)
def test_a_file_makes_its_picture_again(pipe, tmp_path, told):
    first = pipe(**({"seed": 3} | told), progress=False)[0]
    first.save(tmp_path / "a.png")
    found = parameters(tmp_path / "a.png")
    assert found == parameters(str(tmp_path / "a.png")) == parameters(first) == first.parameters
    again = pipe(**arguments(found), progress=False)[0]
    assert np.array_equal(np.asarray(first), np.asarray(again)) and again.parameters == first.parameters


def test_each_picture_of_a_batch_is_made_alone(pipe):
    for image in pipe(["a", "b"], num_images_per_prompt=2, seed=5, progress=False):
        again = pipe(**arguments(parameters(image)), progress=False)[0]
        assert again.parameters == image.parameters


any_text = st.text() | st.sampled_from(
    [
        "a\nNegative prompt: b",
        "Steps: 20, Sampler: Euler",
        '"',
        "\\",
        "{}",
        "😀👩‍👩‍👧 ﷽",
        "\0",
        "\r\n",
        "a: b, c",
        "\u2028",
    ]
)


@given(any_text, any_text | st.none())
def test_any_text_survives(prompt, negative):
    buffer = io.BytesIO()
    own = OURS | {"prompt": prompt, "negative_prompt": negative, "original_size": (3, 4)}
    Picture.of(np.zeros((1, 1, 3), np.uint8), own).save(buffer, "PNG")
    assert parameters(Image.open(buffer)) == own


WEB = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 123, Size: 512x768"
READ = {
    "num_inference_steps": 20, "sampler": "euler_ancestral", "guidance_scale": 7.0, "seed": 123, "width": 512,
    "height": 768,
}  # fmt: skip
EXAMPLES = {
    "bare": (f"a cat\n{WEB}", {"prompt": "a cat"}, {}),
    "no prompt": (WEB, {"prompt": ""}, {}),
    "no prompt but a negative one": (
        f"Negative prompt: dog\n{WEB}", {"prompt": "", "negative_prompt": "dog"}, {},
    ),
    "web UI 1.2": (
        "masterpiece, (cat:1.2), [dog|fox]\nNegative prompt: lowres, (worst quality:1.4)\n"
        "Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 3960312875, Size: 768x512, "
        "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Clip skip: 2, ENSD: 31337, Version: v1.2.1",
        {
            "prompt": "masterpiece, (cat:1.2), [dog|fox]", "negative_prompt": "lowres, (worst quality:1.4)",
            "num_inference_steps": 28, "sampler": "dpmpp_2m", "spacing": "karras", "guidance_scale": 6.5,
            "seed": 3960312875, "width": 768, "height": 512, "clip_skip": 1,
        },
        {
            "Model hash": "6ce0161689", "Model": "v1-5-pruned-emaonly", "ENSD": "31337",
            "Version": "v1.2.1",
        },
    ),
    "web UI 1.10": (
        "1girl, solo, <lora:styleA:0.8>\ncherry blossoms, BREAK outdoors\n"
        "Negative prompt: lowres,\nbad anatomy\n"
        "Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: SGM Uniform, CFG scale: 7, Seed: 123, "
        'Size: 512x768, Model: animeModel_v1, Lora hashes: "styleA: 0123456789ab, b: 1", Version: v1.10.1',
        {
            "prompt": "1girl, solo, <lora:styleA:0.8>\ncherry blossoms, BREAK outdoors",
            "negative_prompt": "lowres,\nbad anatomy", "sampler": "dpmpp_2m_sde", "spacing": "sgm_uniform",
        },
        {"Model": "animeModel_v1", "Lora hashes": "styleA: 0123456789ab, b: 1", "Version": "v1.10.1"},
    ),
    "Forge": (
        "a cat\nSteps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Distilled CFG Scale: 3.5, "
        "Seed: 123, Size: 512x768, Version: f2.0.1v1.10.1-previous-659-gc055f2d4, Module 1: ae",
        {"prompt": "a cat", "sampler": "euler", "spacing": "simple", "guidance_scale": 1.0},
        {"Distilled CFG Scale": "3.5", "Version": "f2.0.1v1.10.1-previous-659-gc055f2d4", "Module 1": "ae"},
    ),
    "image to image": (
        f"a cat\n{WEB}, Denoising strength: 0.75, Mask blur: 4, Inpaint area: Only masked",
        {"prompt": "a cat", "strength": 0.75},
        {"Mask blur": "4", "Inpaint area": "Only masked"},
    ),
    "quoted values": (
        f'a cat\n{WEB}, ADetailer prompt: "a face, \\"smiling\\": yes\\nsecond line", '
        "ADetailer model: face_yolov8n.pt",
        {"prompt": "a cat"},
        {"ADetailer prompt": 'a face, "smiling": yes\nsecond line', "ADetailer model": "face_yolov8n.pt"},
    ),
    "objects": (
        f'a cat\n{WEB}, Created Date: 2024-05-01T12:34:56.7Z, Hashes: {{"vae": "73", "model": "6c"}}, '
        'Civitai resources: [{"type":"checkpoint","modelVersionId":691639}], Civitai metadata: {}',
        {"prompt": "a cat"},
        {
            "Created Date": "2024-05-01T12:34:56.7Z", "Hashes": '{"vae": "73", "model": "6c"}',
            "Civitai resources": '[{"type":"checkpoint","modelVersionId":691639}]', "Civitai metadata": "{}",
        },
    ),
    "what only starts as JSON": (
        f'a cat\n{WEB}, Model: [a]mix_v2, Note: "5 inch" nails, Restore faces',
        {"prompt": "a cat"},
        {"Model": "[a]mix_v2", "Note": '"5 inch" nails', "Restore faces": "Restore faces"},
    ),
    "a sampler that is not here": (
        "a cat\nSteps: 20, Sampler: DPM++ 2S a Karras, CFG scale: 7, Seed: 123, Size: 512x768",
        {"prompt": "a cat", "sampler": None},
        {"Sampler": "DPM++ 2S a Karras"},
    ),
    "a schedule that is not here": (
        f"a cat\n{WEB}, Schedule type: KL Optimal", {"prompt": "a cat"}, {"Schedule type": "KL Optimal"},
    ),
    "a schedule left to the program": (f"a cat\n{WEB}, Schedule type: Automatic", {"prompt": "a cat"}, {}),
    "names that look alike in the prompt": (
        f"Steps: 3, a Negative prompt: no\nSize: 1x1\n{WEB}\n",
        {"prompt": "Steps: 3, a Negative prompt: no\nSize: 1x1"},
        {},
    ),
    "ours, by another program": (
        "猫\nSteps: 20, Sampler: euler_ancestral, CFG scale: 7.0, Seed: 123, Size: 512x768, Model: sd1,",
        {"prompt": "猫"},
        {"Model": "sd1"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected", "other"), EXAMPLES.values(), ids=EXAMPLES)
def test_the_text_of_other_programs_is_read(text, expected, other):
    whole = {"negative_prompt": None} | READ | expected | {"other": other}
    assert read(parameters=text) == {name: value for name, value in whole.items() if value is not None} | {
        "negative_prompt": whole["negative_prompt"]
    }


def test_our_own_text_is_read_where_only_the_other_is_left(pipe):
    image = pipe("a cat", "dog", seed=3, sampler="heun", progress=False)[0]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    found = read(parameters=Image.open(buffer).info["parameters"])
    again = pipe(**arguments(found), progress=False)[0]
    assert again.parameters == image.parameters


def test_our_own_text_wins():
    assert read(parameters=f"a dog\n{WEB}", ldm=json.dumps(OURS)) == OURS


def test_a_text_behind_the_pixels_is_found(tmp_path):
    data = put(png(), b"IEND", chunk(b"tEXt", b"parameters\0a cat\n" + WEB.encode()))
    assert parameters(file(tmp_path, data))["prompt"] == "a cat"


def test_names_of_other_programs_stand_for_ours():
    assert set(SOLVERS.values()) == set(SAMPLERS) and set(SCHEDULES.values()) - {""} == set(SPACINGS)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("just a prompt", "end without"),
        ("", "end without"),
        (f"{WEB}\nand more", "end without"),
        ("a\nSteps: many, Seed: 1", "Steps: 'many', not one like 20"),
        ("a\nSteps: 20.5", "Steps: '20.5'"),
        ("a\nSteps: 20, CFG scale: nan", "CFG scale"),
        ("a\nSteps: 20, Seed: " + "9" * 9999, "Seed"),
        ("a\nSteps: 20, Size: 512", "Size: '512', not one like 512x768"),
        ("a\nSteps: 20, Steps: 30", "'Steps' twice"),
        (f"a\nNegative prompt: b\nNegative prompt: c\n{WEB}", "2 lines that start with"),
        ("a\nSteps: 20, Sampler: DPM++ 2M Karras, Schedule type: Exponential", "Karras but .*Exponential"),
        (f"a\n{WEB}, Note: " + "[" * 10**5, None),
        (f"a\n{WEB}, Note: " + "x" * MOST_TEXT, "more than 131072 characters"),
    ],
    ids=lambda text: text and text[:40],
)
def test_a_text_of_others_that_cannot_be_read_for_sure_is_refused(text, match):
    if match is None:
        assert read(parameters=text)["other"]["Note"].startswith("[[")
    else:
        with pytest.raises(InputError, match=match):
            read(parameters=text)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"prompt": "a"', "[]", "null", "{}", '"a"', "[" * 10**5, '{"prompt": ' + "9" * 9999 + "}"],
)
def test_damaged_text_of_our_own_is_refused(text):
    with pytest.raises(InputError, match=r'the picture has a text "ldm" that is'):
        read(ldm=text)


def test_what_is_no_png_with_texts_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none\.png cannot be read as a PNG file: .*No such file"):
        parameters(tmp_path / "none.png")
    for bad in (3, None, b"a.png", io.BytesIO(png())):
        with pytest.raises(InputError, match="source must be the path"):
            parameters(bad)
    for bad in (tmp_path, "a\0b"):
        with pytest.raises(InputError, match="cannot be read as a PNG file"):
            parameters(bad)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg cannot be read as a PNG file"):
        parameters(tmp_path / "a.jpg")
    with pytest.raises(InputError, match=r'a\.png has no text "ldm" or "parameters"'):
        parameters(file(tmp_path, png()))
    for image in (Image.new("RGB", (2, 2)), Picture.of(np.zeros((1, 1, 3), np.uint8), {})):
        with pytest.raises(InputError, match="the picture has no text"):
            parameters(image)
    closed = Image.open(file(tmp_path, png()))
    closed.close()
    with pytest.raises(InputError, match="cannot be read"):
        parameters(closed)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(InputError, match="decompression bomb"):
        parameters(file(tmp_path, png(ldm=json.dumps(OURS))))


def test_a_text_that_grows_when_unpacked_is_refused(tmp_path):
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * 2**26))
    with pytest.raises(InputError, match="Decompressed data too large"):
        parameters(file(tmp_path, put(png(), b"IDAT", bomb)))


@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, data):
    whole = png(parameters=f"a cat\nNegative prompt: b\n{WEB}, A: [1, 2]", ldm=json.dumps(OURS))
    part = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
        part[place : place + 1] = data.draw(st.binary(max_size=2))
    odd = chunk(b"tEXt", b"parameters\0a\n" + data.draw(st.binary()) + WEB.encode())
    for made in (bytes(part), put(png(), b"IDAT", odd)):
        try:
            assert isinstance(parameters(file(tmp_path_factory.getbasetemp(), made)), dict)
        except InputError as error:
            assert "a.png" in str(error)


@given(st.text(alphabet='ab:, "[]{}\\1xStep\n', max_size=60))
def test_any_line_of_settings_is_read_or_refused(text):
    try:
        found = read(parameters=f"a\nSteps: 20, {text}")
        assert found["num_inference_steps"] == 20
        assert all(isinstance(value, str) for value in found["other"].values())
    except InputError:
        pass


def test_changes_win():
    found = OURS | {"strength": 0.5, "eta": 0.3, "sampler": "euler_ancestral", "original_size": (3, 4)}
    plain = arguments(found)
    assert plain["sampler"] == ldm.sampler("euler_ancestral", eta=0.3)
    assert plain["original_size"] == (3, 4)
    assert not {"strength", "eta", "spacing", "family", "image"} & set(plain)
    changed = arguments(found, {"sampler": "heun", "seed": 9, "image": "…", "sede": 1})
    assert changed == plain | {"sampler": "heun", "seed": 9, "image": "…", "strength": 0.5, "sede": 1}
    assert arguments(found, {"image": "…", "strength": 0.1})["strength"] == 0.1
    assert "strength" not in arguments(found, {"image": None})


def test_a_sampler_has_the_spacing_and_eta_it_was_given():
    assert arguments({"sampler": "heun", "eta": None, "spacing": None}) == {"sampler": "heun"}
    assert arguments({"prompt": "a"}) == {"prompt": "a"}
    made = arguments({"sampler": "heun", "eta": None, "spacing": "karras"})["sampler"]
    assert made == ldm.sampler("heun", spacing="karras")
    made = arguments({"sampler": "ddim", "eta": 0.5, "spacing": "trailing"})["sampler"]
    assert made == ldm.sampler("ddim", spacing="trailing", eta=0.5)


@pytest.mark.parametrize(
    "found",
    [
        {"other": {"Sampler": "DPM++ 2S a"}},
        {"sampler": "euler", "other": {"Schedule type": "KL Optimal"}},
        {"spacing": "karras"},
        {"eta": 0.5},
    ],
)
def test_a_sampler_that_is_not_known_must_be_given(found):
    with pytest.raises(InputError, match="give sampler"):
        arguments(found)
    assert arguments(found, {"sampler": "heun"}) == {"sampler": "heun"}


@pytest.mark.parametrize(
    "found",
    [{"sampler": 3, "eta": 1}, {"sampler": "heun", "eta": 1}, {"sampler": "ddim", "spacing": ["karras"]}],
)
def test_a_sampler_out_of_a_file_is_checked(found):
    with pytest.raises(InputError):
        arguments(found | {"other": 3})


def test_a_pipeline_draws_what_a_file_tells_again(pipe, tmp_path):
    chosen = ldm.sampler("dpmpp_2m", spacing="karras")
    options = {
        "seed": 3,
        "sampler": chosen,
        "num_inference_steps": 3,
        "guidance_rescale": 0.5,
        "progress": False,
    }
    first = pipe("a (red) cat", negative_prompt="b", noise="philox", **options)
    first[0].save(tmp_path / "a.png")
    again = pipe.from_png(tmp_path / "a.png", progress=False)
    assert torch.equal(again.latents, first.latents)
    other = pipe.from_png(tmp_path / "a.png", seed=4, progress=False)
    assert torch.equal(
        other.latents, pipe("a (red) cat", "b", noise="philox", **options | {"seed": 4}).latents
    )


def test_what_a_file_cannot_tell_is_asked_for(pipe, tmp_path):
    grey = Image.new("RGB", (16, 16), "grey")
    pipe("a cat", image=grey, strength=0.6, seed=1, progress=False)[0].save(tmp_path / "a.png")
    assert parameters(tmp_path / "a.png")["strength"] == 0.6
    with pytest.raises(InputError, match="give image"):
        pipe.from_png(tmp_path / "a.png")
    assert len(pipe.from_png(tmp_path / "a.png", image=grey, progress=False)) == 1
    custom = ldm.sampler("euler", timesteps=[900, 500, 100])
    pipe("a cat", sampler=custom, seed=1, progress=False)[0].save(tmp_path / "b.png")
    with pytest.raises(InputError, match="custom"):
        pipe.from_png(tmp_path / "b.png")
    with pytest.raises(InputError, match="was drawn by sd1"):
        ldm.load().from_png(tmp_path / "b.png")


@pytest.mark.parametrize(("name", "heard"), [("sd1", True), ("sd2-v", False), ("sdxl", False)])
def test_another_programs_clip_skip_is_heard_where_that_program_heard_it(name, heard, tmp_path):
    pipe, found = reduced(name), []
    side = pipe.family.size
    for setting in ("", ", Clip skip: 2"):
        info = PngImagePlugin.PngInfo()
        info.add_text(
            "parameters",
            f"a cat\nSteps: 2, Sampler: DDIM, CFG scale: 3, Seed: 1, Size: {side}x{side}{setting}",
        )
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        found.append(pipe.from_png(tmp_path / "a.png", output_type="latent", progress=False).latents)
    assert torch.equal(*found) != heard
