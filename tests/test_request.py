"""Bad input is refused at the door: by its name, with the right error, before any network runs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ldm
from ldm import DeviceError, InputError
from ldm.errors import KeywordError
from tests import tiny
from tests.tiny import PNG_SIDE

NAN, INF = float("nan"), float("inf")
PICTURE = Image.new("RGB", (PNG_SIDE, PNG_SIDE))
START = (1, 4, PNG_SIDE // 2, PNG_SIDE // 2)


@pytest.fixture(scope="module")
def door():
    """A pipeline whose networks must not run."""
    pipe = tiny.make()

    def never(module, args):
        raise AssertionError("a network ran")

    for network in (*pipe.networks(), pipe.vae.encoder, pipe.vae.decoder):
        network.register_forward_pre_hook(never)
    return pipe


BAD = {
    "prompt": [None, 3, b"a cat", [], [None], ["a", 3], [["a"]], {"a"}, {"a": 1}, "\ud800", object()],
    "negative_prompt": [3, [], ["a", "b"], [None], b"x", "\udfff"],
    "num_inference_steps": [0, -1, 2.5, 1001, True, "7", NAN, INF, [5], 10**30, torch.tensor(2.5)],
    "guidance_scale": [NAN, INF, -INF, "7", True, [7], 1j, 10**400, torch.tensor(7.0)],
    "height": [0, -8, 15, 12.0, "16", True, 10**9, 2**70, NAN, [16]],
    "width": [0, -8, 15, 12.0, "16", False, 10**9, 2**70, INF, (16,)],
    "num_images_per_prompt": [0, -1, 1.5, True, "2", 10**9],
    "seed": [-1, 1.5, True, "3", 2**63, [1, 2], [], [None], [-1], NAN, {1}],
    "sampler": ["eular", "", "DDIM", 3, 0, False, [], b"ddim", object()],
    "output_type": ["PIL", "png", 3, None, ["pil"], ""],
    "strength": [0, -0.1, 1.1, NAN, INF, "0.5", True],
    "latents": [
        torch.zeros(1, 4, 3, 3),
        torch.zeros(START[1:]),
        torch.full(START, NAN),
        torch.full(START, INF),
        np.zeros(START, np.float32),
        [[1.0]],
        "noise",
        0,
        torch.zeros(2, *START[1:]),
    ],
    "image": [
        "a.png",
        3,
        np.zeros((PNG_SIDE, PNG_SIDE)),
        np.zeros((3, 3, 3)),
        np.full((PNG_SIDE, PNG_SIDE, 3), 255.0),
        torch.full((3, PNG_SIDE, PNG_SIDE), NAN),
        torch.zeros(4, PNG_SIDE, PNG_SIDE),
        torch.zeros(3, 8, 8),
        torch.zeros(2, 3, PNG_SIDE, PNG_SIDE),
        [PICTURE],
        b"png",
    ],
    "callback": [3, "print", []],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(n, v, id=f"{n}-{i}") for n, values in BAD.items() for i, v in enumerate(values)],
)
def test_a_bad_argument_is_refused_by_name(door, name, value):
    with pytest.raises(InputError, match=name):
        door(**{"prompt": "a cat", "progress": False} | {name: value})


MASKS = [
    "m.png",
    np.zeros((3, 3)),
    np.full((PNG_SIDE, PNG_SIDE), 255),
    torch.full((PNG_SIDE, PNG_SIDE), NAN),
    torch.zeros(1, PNG_SIDE, PNG_SIDE),
    1,
    [PICTURE],
]


@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_a_bad_mask_is_refused_by_name(door, mask):
    with pytest.raises(InputError, match="mask_image"):
        door("a cat", image=PICTURE, mask_image=mask)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask_image": PICTURE}, ("mask_image", "image")),
        ({"image": PICTURE, "latents": torch.zeros(START)}, ("image", "latents")),
        ({"image": PICTURE, "strength": 0.1, "num_inference_steps": 5}, ("strength", "5 steps")),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, ("negative_prompt", "3", "2")),
        ({"prompt": ["a"] * 100, "num_images_per_prompt": 100}, ("10000 images",)),
        ({"prompt": ["a", "b"], "seed": [1]}, ("seed", "1 numbers", "2 images")),
        ({"height": 4098, "width": 4096}, ("height", "width")),
        ({"height": 15}, ("multiple of 2", "try 16")),
        ({"sampler": "eular"}, ("did you mean 'euler'",)),
    ],
    ids=lambda value: "-".join(value),
)
def test_what_does_not_fit_together_is_told(door, options, words):
    with pytest.raises(InputError) as caught:
        door(**{"prompt": "a"} | options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("steps", ""),
        ("guidance", "guidance_scale"),
        ("promt", "prompt"),
        ("num_inference_step", "num_inference_steps"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_nearest_known(door, wrong, right):
    with pytest.raises(KeywordError, match=wrong) as caught:
        door("a", **{wrong: 3})
    assert right in str(caught.value)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, InputError)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "meta:", 3.5, None, "mps:7"])
def test_a_device_that_is_not_there_is_refused(file, device):
    if device is None:
        device = object()
    with pytest.raises(DeviceError, match="device"):
        ldm.load(file, device=device)
    with pytest.raises(DeviceError, match="device"):
        tiny.make().to(device)


@pytest.mark.parametrize("dtype", [torch.int32, "float32", 32, torch.complex64, torch.bool, np.float32])
def test_a_dtype_that_networks_cannot_have_is_refused(file, dtype):
    with pytest.raises(InputError, match="dtype"):
        ldm.load(file, dtype=dtype)
    with pytest.raises(InputError, match="dtype"):
        tiny.make().to(dtype=dtype)
    with pytest.raises(InputError, match="dtype"):
        ldm.save(tiny.make(), file.parent / "never.safetensors", dtype=dtype)
    assert not (file.parent / "never.safetensors").exists()


@pytest.mark.parametrize("source", [3, b"x", ["a"], object(), True])
def test_a_source_is_a_path(source):
    with pytest.raises(InputError, match="source"):
        ldm.load(source)
    with pytest.raises(InputError, match="source"):
        ldm.inspect(source)


def test_every_error_is_one_of_ours():
    for kind in (ldm.CheckpointError, ldm.InputError, ldm.DeviceError, ldm.NumericError):
        assert issubclass(kind, ldm.LdmError)
    assert issubclass(ldm.CheckpointError, ValueError) and issubclass(ldm.InputError, ValueError)


NUMBERS = st.integers(-(10**20), 10**20) | st.floats() | st.booleans() | st.none() | st.text(max_size=3)
PIPE = tiny.make()


@given(steps=NUMBERS, height=NUMBERS, seed=NUMBERS, guidance=NUMBERS, strength=NUMBERS)
def test_any_arguments_are_understood_or_refused(steps, height, seed, guidance, strength):
    from ldm.request import read

    options = {
        "height": height,
        "width": None,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "num_images_per_prompt": 1,
        "seed": seed,
        "chosen": None,
        "strength": strength,
        "output_type": "pil",
    }
    try:
        request = read(PIPE.family, "a", None, **options)
    except InputError:
        return
    assert 1 <= request.steps <= 1000 and request.height % 2 == 0 and 0 < request.strength <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"height": np.int64(16)},
        {"num_inference_steps": np.int32(2)},
        {"guidance_scale": np.float64(3)},
        {"guidance_scale": 3},
        {"seed": np.int64(7)},
        {"seed": (7,)},
        {"prompt": ("a",)},
        {"strength": 1},
        {"prompt": ""},
        {"prompt": ["", ""], "negative_prompt": ["b"]},
        {"sampler": ldm.sampler("ddim", eta=1)},
        {"prompt": "x" * 5000},
        {"prompt": "\u0000"},
        {"guidance_scale": -1},
        {"num_inference_steps": 1},
    ],
)
def test_what_is_meant_well_is_taken(options):
    PIPE(**{"prompt": "a", "num_inference_steps": 2, "output_type": "latent", "progress": False} | options)
