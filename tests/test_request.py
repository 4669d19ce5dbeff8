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
SHAPE = (PNG_SIDE, PNG_SIDE, 3)
HUGE = 10**5000  # has more digits than Python prints


def odd(shape):
    """Tensors that hold no plain real numbers."""
    zeros = torch.zeros(shape)
    return [
        torch.zeros(shape, device="meta"),
        zeros.to_sparse(),
        zeros.to(torch.complex64),
    ]


def odd_arrays(shape):
    """Arrays of what torch has no numbers for."""
    return [np.zeros(shape, dtype) for dtype in (object, "U1", "S1", np.longdouble, complex, "M8[s]")]


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
    "guidance_scale": [NAN, INF, -INF, "7", True, [7], 1j, 10**400, HUGE, 1e39, -1000001, torch.tensor(7.0)],
    "height": [0, -8, 15, 12.0, "16", True, 8194, 100_000, 10**9, 2**70, HUGE, NAN, [16]],
    "width": [0, -8, 15, 12.0, "16", False, 10**9, 2**70, INF, (16,)],
    "num_images_per_prompt": [0, -1, 1.5, True, "2", 10**9],
    "seed": [
        *(-1, 1.5, True, "3", 2**63, HUGE, [1, 2], [], [None], [-1], NAN, {1}),
        *(np.array(1.5), np.array("3"), np.zeros((1, 1), int), np.array([1.0]), np.array([None])),
        *(torch.tensor(3, device="meta"), torch.tensor([1, 2])),
    ],
    "sampler": ["eular", "", "DDIM", 3, 0, False, [], b"ddim", object()],
    "output_type": ["PIL", "png", 3, None, ["pil"], "", np.array(["pil", "np"])],
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
        torch.full(START, 1e300, dtype=torch.float64),
        *odd(START),
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
        np.broadcast_to(0.5, (10**5, 10**5, 3)),
        np.full(SHAPE, 1e300),
        np.full(SHAPE, 255, np.int16),
        Image.new("I;16", SHAPE[:2]),
        Image.new("F", SHAPE[:2]),
        Image.new("RGB", (0, 5)),
        *odd((3, PNG_SIDE, PNG_SIDE)),
        *odd_arrays(SHAPE),
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
    torch.zeros(2, PNG_SIDE, PNG_SIDE),
    np.ones(SHAPE[:2], np.uint8),  # white is 255
    1,
    [PICTURE],
    Image.new("F", SHAPE[:2]),
    *odd(SHAPE[:2]),
    *odd_arrays(SHAPE[:2]),
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
        ({"height": 4098, "width": 4096}, ("height", "width", "smaller")),
        ({"height": 100_000}, ("height", "from 1 to 8192", "100000", "smaller")),
        ({"width": 10_000, "height": 8}, ("width", "from 1 to 8192", "smaller")),
        ({"height": 15}, ("multiple of 2", "try 16")),
        ({"sampler": "eular"}, ("did you mean 'euler'",)),
    ],
    ids=lambda value: "-".join(value),
)
def test_what_does_not_fit_together_is_told(door, options, words):
    with pytest.raises(InputError) as caught:
        door(**{"prompt": "a"} | options)
    assert all(word in str(caught.value) for word in words)


IMAGES = [
    *("a", None, np.zeros((1, 3, 8, 8), np.float32), torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8)),
    *(
        torch.zeros(1, 3, 8, 7),
        torch.zeros(1, 3, 0, 8),
        torch.zeros(0, 3, 8, 8),
        torch.full((1, 3, 8, 8), NAN),
    ),
    *(torch.full((1, 3, 8, 8), -1.1), torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)),
    *odd((1, 3, 8, 8)),
]
LATENTS = [
    *("a", None, np.zeros(START, np.float32), torch.zeros(START[1:]), torch.zeros(1, 3, 8, 8)),
    *(torch.zeros(1, 4, 0, 8), torch.zeros(0, 4, 8, 8), torch.full(START, NAN), torch.full(START, INF)),
    *odd(START),
]


@pytest.mark.parametrize("images", IMAGES, ids=range(len(IMAGES)))
def test_what_cannot_be_encoded_is_refused(door, images):
    with pytest.raises(InputError, match="images"):
        door.encode(images)


@pytest.mark.parametrize("latents", LATENTS, ids=range(len(LATENTS)))
def test_what_cannot_be_decoded_is_refused(door, latents):
    with pytest.raises(InputError, match="latents"):
        door.decode(latents)


@pytest.mark.parametrize("prompts", [3, ["a", 3], b"a"])
def test_only_texts_can_condition(door, prompts):
    with pytest.raises(InputError, match="prompts"):
        door.condition(prompts)


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


@pytest.mark.parametrize(
    "dtype", [torch.int32, "float32", 32, torch.complex64, torch.bool, np.float32, np.zeros(2)]
)
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
        request = read(PIPE.family, "a", None, ways={}, details={}, **options)
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
        {"seed": np.array(3)},
        {"seed": np.array([3], ">u2")},
        {"guidance_scale": np.float32(1e6)},
        {"sampler": ldm.sampler("euler", eta=np.float32(0.5))},
        {"latents": torch.zeros(START, dtype=torch.float64)},
        {"image": np.zeros(SHAPE, ">f4")},
        {"image": PICTURE, "mask_image": np.flip(np.eye(PNG_SIDE))},
        {"image": PICTURE, "mask_image": np.eye(PNG_SIDE, dtype=">f8")},
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
