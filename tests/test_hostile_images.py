"""Pictures, masks and depth maps of every kind: converted as documented, or refused with one sentence."""

import colorsys
import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm import cli
from ldm.commands import words
from ldm.errors import InputError
from ldm.image import from_any, mask_from_any, to_unit
from ldm.parts import knowing, latent_mask, paste
from ldm.pictures import Pictures, depth_from_any
from ldm.pipeline import Pipeline
from tests import reduced, tiny
from tests.tiny import unit_noise

W, H = SIZE = 12, 8
NAN, INF = float("nan"), float("inf")
PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
LEVELS = PIXELS[..., 0]
HALF = np.arange(W)[None].repeat(H, 0) < W // 2
UPRIGHT = {  # EXIF's orientation to how the pixels are stored then (EXIF 2.32, section 4.6.4)
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[:, ::-1],
}
PALETTE = [255, 0, 0, 0, 255, 0, 0, 0, 255]


def pil(mode, colour, **info):
    """A PIL image of one colour."""
    image = Image.new(mode, SIZE, colour)
    image.info.update(info)
    return image


def through(mode, colour):
    """One of a mode that cannot be filled, by way of RGBA."""
    image = Image.new("RGBA", SIZE, colour)
    return image.convert("LA").convert("La") if mode == "La" else image.convert(mode)


def palette(mode="RGB", colours=PALETTE, **info):
    image = Image.new("P", SIZE, 1)
    image.putpalette(colours, mode)
    image.info.update(info)
    return image


def over(colour, alpha):
    """On white: alpha colour + (1 - alpha) white."""
    return [c * alpha / 255 + 255 - alpha for c in colour]


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(depth, colour, rows, size=SIZE):
    """The bytes of a PNG file, written from the standard."""
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deep(colour, *words):
    """A PNG file of 16 bits a channel, opened."""
    return opened(png(16, colour, np.full((H, W, len(words)), words, ">u2")))


def opened(data):
    return Image.open(io.BytesIO(data))


def stored(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def frames(kind, at=0):
    """A file of a red, a green and a blue picture, opened, at one of them."""
    red, *others = [Image.new("RGB", SIZE, name) for name in ("red", "lime", "blue")]
    image = opened(stored(red, kind, save_all=True, append_images=others))
    image.seek(at)
    return image


def turned(orientation, kind="PNG", array=PIXELS):
    """The bytes of a file that holds the pixels as a camera held so would."""
    image = Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](array)))
    exif = image.getexif()
    exif[0x0112] = orientation
    return stored(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


def cut(data, share=0.6):
    return data[: int(len(data) * share)]


def seen(image):
    """What there is to see of a picture as given, to tell whether it was touched."""
    if isinstance(image, Image.Image):
        table = image.getpalette("RGBA") if image.mode in ("P", "PA") else None
        at = image.tell() if hasattr(image, "tell") else 0
        return image.mode, image.size, image.tobytes(), table, repr(image.info), at
    if isinstance(image, torch.Tensor):
        return image.shape, image.dtype, image.requires_grad, image.detach().float().clone().tolist()
    return image.shape, image.dtype, image.strides, image.flags.writeable, image.tolist()


@pytest.fixture(scope="module")
def tiny_pipe():
    return tiny.make()


def kept(pipe, image, **options):
    """A picture after a call that keeps all of it."""
    options = {"height": H, "width": W, "num_inference_steps": 1, "strength": 1, "progress": False} | options
    return np.asarray(pipe("a", image=image, mask_image=np.zeros((H, W)), **options)[0])


COLOURS = {  # kind of PIL image, to its colour on the screen and how far off Pillow may be
    "RGB": (lambda: pil("RGB", (200, 100, 50)), (200, 100, 50), 0),
    "RGBX": (lambda: pil("RGBX", (200, 100, 50, 7)), (200, 100, 50), 0),
    "L": (lambda: pil("L", 77), (77, 77, 77), 0),
    "1": (lambda: pil("1", 1), (255, 255, 255), 0),
    "P": (lambda: palette(), (0, 255, 0), 0),
    "CMYK": (lambda: pil("CMYK", (30, 60, 90, 120)), [(255 - c) * 135 / 255 for c in (30, 60, 90)], 1),
    "CMYK JPEG": (lambda: opened(stored(pil("CMYK", (0, 255, 0, 0)), "JPEG")), (255, 0, 255), 3),
    "YCbCr": (lambda: pil("YCbCr", (124, 86, 182)), (124 + 1.402 * 54, 100, 124 - 1.772 * 42), 1.5),
    "HSV": (
        lambda: pil("HSV", (14, 191, 200)),
        [255 * c for c in colorsys.hsv_to_rgb(14 / 255, 191 / 255, 200 / 255)],
        1.5,
    ),
    "LAB": (
        lambda: pil("LAB", (138, 209, 198)),
        (255, 0, 0),
        6,
    ),  # sRGB's red under D50: 54.3, 209 - 128, 198 - 128
    "LAB and an odd key": (lambda: pil("LAB", 0, transparency=0), (0, 59, 195), 6),  # not laid on white
    "RGBA": (lambda: pil("RGBA", (200, 100, 50, 128)), over((200, 100, 50), 128), 0.5),
    "RGBA opaque": (lambda: pil("RGBA", (200, 100, 50, 255)), (200, 100, 50), 0),
    "RGBA clear": (lambda: pil("RGBA", (200, 100, 50, 0)), (255, 255, 255), 0),
    "RGBa": (lambda: through("RGBa", (200, 100, 50, 128)), over((200, 100, 50), 128), 1),
    "LA": (lambda: pil("LA", (100, 128)), over((100,) * 3, 128), 0.5),
    "La": (lambda: through("La", (100, 100, 100, 128)), over((100,) * 3, 128), 1),
    "PA": (lambda: through("PA", (255, 0, 0, 51)), over((255, 0, 0), 51), 0.5),
    "P and a clear index": (lambda: palette(transparency=1), (255, 255, 255), 0),
    "P and another clear index": (lambda: palette(transparency=0), (0, 255, 0), 0),
    "P and a table": (lambda: palette(transparency=bytes([0, 102, 0])), over((0, 255, 0), 102), 0.5),
    "P of RGBA": (lambda: palette("RGBA", [0] * 4 + [0, 255, 0, 102]), over((0, 255, 0), 102), 0.5),
    "L and a clear level": (lambda: pil("L", 7, transparency=7), (255, 255, 255), 0),
    "L and another clear level": (lambda: pil("L", 7, transparency=8), (7, 7, 7), 0),
    "1 and a clear level": (lambda: pil("1", 0, transparency=0), (255, 255, 255), 0),
    "RGB and a clear colour": (lambda: pil("RGB", (1, 2, 3), transparency=(1, 2, 3)), (255, 255, 255), 0),
    "16 bits, RGB": (lambda: deep(2, 0x12FF, 0x3400, 0xFFFF), (0x12, 0x34, 0xFF), 0),
    "16 bits, RGBA": (lambda: deep(6, 0x12FF, 0x3400, 0xFFFF, 0), (255, 255, 255), 0),
    "16 bits, grey and alpha": (lambda: deep(4, 0x12FF, 0xFFFF), (0x12, 0x12, 0x12), 0),
    "GIF of three": (lambda: frames("GIF"), (255, 0, 0), 0),
    "GIF of three at the second": (lambda: frames("GIF", 1), (0, 255, 0), 0),
    "APNG": (lambda: frames("PNG"), (255, 0, 0), 0),
    "APNG at the third": (lambda: frames("PNG", 2), (0, 0, 255), 0),
    "TIFF of three": (lambda: frames("TIFF"), (255, 0, 0), 0),
    "TIFF of three at the second": (lambda: frames("TIFF", 1), (0, 255, 0), 0),
    "of another size and shape": (lambda: Image.new("RGB", (90, 7), "red"), (255, 0, 0), 0),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", COLOURS)
def test_a_pil_image_is_read_as_it_is_seen_on_paper(tiny_pipe, kind):
    make, colour, off = COLOURS[kind]
    image = make()
    before = seen(make())
    found = to_unit(from_any(image, SIZE))[0] * 255
    assert found.shape == (3, H, W)
    assert (found - torch.tensor(colour, dtype=torch.float32)[:, None, None]).abs().max() <= off + 1e-4
    assert np.array_equal(kept(tiny_pipe, image), found.round().byte().permute(1, 2, 0).numpy())
    assert seen(image) == before


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photograph_is_turned_upright(tiny_pipe, tmp_path, orientation, kind):
    (tmp_path / "a").write_bytes(turned(orientation, kind))
    with Image.open(tmp_path / "a") as lazy:
        image = to_unit(from_any(lazy, SIZE))[0]
    assert np.array_equal((image * 255).round().byte().permute(1, 2, 0), PIXELS)
    assert np.array_equal(kept(tiny_pipe, words.picture("--image", str(tmp_path / "a"))), PIXELS)
    with Image.open(io.BytesIO(turned(orientation, kind, LEVELS))) as lazy:
        mask = mask_from_any(lazy, SIZE)[0, 0]
        assert np.array_equal((mask * 255).round().byte(), LEVELS)
        pictures = Pictures(Image.fromarray(PIXELS), lazy).read(tiny.TINY, H, W)
    assert torch.equal(pictures.mask[0, 0], mask)


def test_a_small_picture_that_lies_on_its_side_is_enlarged_upright():
    from ldm.pictures import grown

    family = reduced.REDUCED["sd-x4-upscaler"]
    assert grown(family, opened(turned(6)), None, None) == (H * family.vae.factor, W * family.vae.factor)


def tensor(kind=torch.float32):
    x = torch.from_numpy(PIXELS).permute(2, 0, 1)
    return x if kind == torch.uint8 else (x / 127.5 - 1).to(kind)


def array(kind="f4"):
    return (PIXELS / 255).astype(kind)


def frozen(x):
    x.flags.writeable = False
    return x


ARRAYS = {  # an array or tensor, to how far off its numbers are
    "uint8": (lambda: PIXELS.copy(), 0),
    "float16": (lambda: array("f2"), 2**-10),
    "float32": (lambda: array("f4"), 1e-6),
    "float64": (lambda: array("f8"), 1e-6),
    "big-endian": (lambda: array(">f4"), 1e-6),
    "big-endian half": (lambda: array(">f2"), 2**-10),
    "upside down and back": (lambda: array()[::-1].copy()[::-1], 1e-6),
    "negative strides": (lambda: PIXELS[:, ::-1, ::-1].copy()[:, ::-1, ::-1], 0),
    "Fortran order": (lambda: np.asfortranarray(array()), 1e-6),
    "part of a larger one": (lambda: np.pad(array(), ((1, 1), (2, 2), (0, 1)))[1:-1, 2:-2, :3], 1e-6),
    "read-only": (lambda: frozen(array()), 1e-6),
    "read-only bytes": (lambda: frozen(PIXELS.copy()), 0),
    "a little over": (lambda: array() * 1.0005, 0.002),
    "tensor": (lambda: tensor(), 1e-6),
    "tensor of bytes": (lambda: tensor(torch.uint8), 0),
    "half": (lambda: tensor(torch.float16), 2**-10),
    "bfloat16": (lambda: tensor(torch.bfloat16), 2**-8),
    "double": (lambda: tensor(torch.float64), 1e-6),
    "float8": (lambda: tensor(torch.float8_e4m3fn), 2**-4),
    "with a batch of one": (lambda: tensor()[None], 1e-6),
    "with a gradient": (lambda: tensor().requires_grad_(), 1e-6),
    "channels last in memory": (lambda: tensor()[None].to(memory_format=torch.channels_last), 1e-6),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_is_read_as_documented(tiny_pipe, kind):
    make, off = ARRAYS[kind]
    image, expected = make(), tensor()[None]
    found = from_any(image, SIZE)
    assert found.dtype == torch.float32 and found.shape == (1, 3, H, W) and not found.requires_grad
    assert (found - expected).abs().max() <= off
    out = kept(tiny_pipe, image).astype(int)
    assert np.abs(out - PIXELS).max() <= round(off * 127.5)
    assert seen(image) == seen(make())


GREY = Image.fromarray(LEVELS)
ADMITTED = {  # a mask, to its share of paint
    "L": (lambda: GREY, LEVELS / 255),
    "1": (lambda: Image.fromarray(HALF), HALF),
    "RGB": (lambda: pil("RGB", (255, 0, 0)), np.full((H, W), 76 / 255)),  # luma of red: 0.299
    "P": (lambda: palette(), np.full((H, W), 150 / 255)),  # of green: 0.587
    "CMYK": (lambda: pil("CMYK", (0, 0, 0, 0)), np.ones((H, W))),
    "LAB": (lambda: pil("LAB", (255, 128, 128)), np.ones((H, W))),
    "opaque RGBA": (lambda: Image.merge("RGBA", [GREY] * 3 + [pil("L", 255)]), LEVELS / 255),
    "opaque LA": (lambda: Image.merge("LA", [GREY, pil("L", 255)]), LEVELS / 255),
    "L and a clear level it has not": (lambda: pil("L", 255, transparency=0), np.ones((H, W))),
    "GIF of three at the second": (lambda: frames("GIF", 1), np.full((H, W), 150 / 255)),
    "twice the size": (lambda: Image.fromarray(HALF.repeat(2, 0).repeat(2, 1)), HALF),
    "twice the size, grey": (lambda: Image.fromarray(LEVELS.repeat(2, 0).repeat(2, 1)), LEVELS / 255),
    "black": (lambda: pil("L", 0), np.zeros((H, W))),
    "white": (lambda: pil("L", 255), np.ones((H, W))),
    "grey": (lambda: pil("L", 51), np.full((H, W), 0.2)),
    "bool": (lambda: HALF.copy(), HALF),
    "bool tensor": (lambda: torch.from_numpy(HALF.copy()), HALF),
    "whole numbers": (lambda: HALF.astype(">i2"), HALF),
    "uint8": (lambda: LEVELS.copy(), LEVELS / 255),
    "float16": (lambda: HALF.astype("f2") / 2, HALF / 2),
    "float64 in Fortran order": (lambda: np.asfortranarray(LEVELS / 255), LEVELS / 255),
    "[1 H W]": (lambda: torch.from_numpy(HALF[None] / 2), HALF / 2),
    "[1 1 H W]": (lambda: HALF[None, None].astype("f4"), HALF),
    "[H W 1]": (lambda: HALF[..., None].copy(), HALF),
    "turned round": (lambda: HALF[::-1, ::-1].copy()[::-1, ::-1], HALF),
    "read-only": (lambda: frozen(HALF / 4), HALF / 4),
    "with a gradient": (lambda: torch.full((H, W), 0.5).requires_grad_(), np.full((H, W), 0.5)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ADMITTED)
def test_a_mask_is_read_as_documented_and_pasted_in_its_share(tiny_pipe, kind):
    make, share = ADMITTED[kind]
    mask = make()
    found = mask_from_any(mask, SIZE)
    assert found.shape == (1, 1, H, W) and found.dtype == torch.float32 and not found.requires_grad
    assert np.abs(found[0, 0].numpy() - share).max() <= 1e-6
    options = {"height": H, "width": W, "strength": 1, "num_inference_steps": 1, "progress": False}
    drawn = tiny_pipe("a", image=PIXELS, mask_image=mask, output_type="pt", **options)
    new, old = to_unit(tiny_pipe.decode(drawn.latents)), to_unit(from_any(PIXELS, SIZE))
    assert (drawn.images - torch.lerp(old, new, found)).abs().max() <= 1e-5
    black = (found == 0).expand(1, 3, H, W)
    assert torch.equal(drawn.images[black], old[black])  # bit for bit
    assert seen(mask) == seen(make())


def test_a_soft_mask_mixes_in_its_share_on_the_way_and_at_the_end():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0, 0], mask[..., 2, 3], mask[..., 3, 3] = 0.5, 0.25, 1
    small = latent_mask(mask, 2)
    assert small[0, 0].tolist() == [[0.5, 0], [0, 1]]
    z, guess = unit_noise(0, 1, 4, 2, 2), unit_noise(1, 1, 4, 2, 2)
    mixed = knowing(lambda x, level: guess, z, small)(guess, None)
    assert torch.allclose(mixed[..., 0, 0], (z + guess)[..., 0, 0] / 2)
    assert torch.equal(mixed[..., 0, 1], z[..., 0, 1]) and torch.equal(mixed[..., 1, 1], guess[..., 1, 1])
    old, new = torch.full((1, 3, 4, 4), -0.6), torch.full((1, 3, 4, 4), 0.2)
    pasted = paste(new, old, mask)
    assert torch.allclose(pasted[..., 0, 0], torch.tensor(-0.2)) and torch.equal(pasted[..., 1], old[..., 1])
    assert torch.allclose(pasted[..., 2, 3], torch.tensor(-0.4)) and torch.equal(
        pasted[..., 3, 3], new[..., 3, 3]
    )


def closed():
    image = opened(stored(Image.fromarray(PIXELS), "PNG"))
    image.close()
    return image


NOT_PICTURES = {  # in every argument, to words of the sentence
    "a path": (lambda: "cat.png", "'cat.png'; open it with PIL.Image.open"),
    "a Path": (lambda: Path("cat.png"), "open it with PIL.Image.open"),
    "bytes": (lambda: b"\x89PNG", "open it with PIL.Image.open(io.BytesIO"),
    "a list": (lambda: [Image.fromarray(PIXELS)], "give one"),
    "a list of None": (lambda: [None], "[None]; give one"),
    "a list of numbers": (lambda: PIXELS.tolist(), "np.asarray"),
    "a number": (lambda: 3, "not 3; give one"),
    "a numpy number": (lambda: np.float32(3), "give one"),
    "a numpy number as array": (lambda: np.array(3.0), "an array ()"),
    "an open file": (lambda: io.BytesIO(b""), "give one"),
    "an empty array": (lambda: np.zeros((0, W, 3)), "an array (0, 12, 3)"),
    "an empty tensor": (lambda: torch.zeros(3, 0, 0), "a tensor (3, 0, 0)"),
    "objects": (lambda: array("O"), "of object; make it plain"),
    "complex numbers": (lambda: array("c8"), "of complex64; make it plain"),
    "long doubles": (lambda: array(np.longdouble), "make it plain"),
    "texts": (lambda: array("U5"), "make it plain"),
    "records": (lambda: np.zeros((H, W), [("r", "u1"), ("g", "u1")]), "make it plain"),
    "sparse": (lambda: tensor().to_sparse(), "sparse"),
    "on meta": (lambda: tensor().to("meta"), "on meta; make it plain"),
    "complex tensor": (lambda: tensor().to(torch.complex64), "of torch.complex64"),
    "quantised": (lambda: torch.quantize_per_tensor(tensor(), 0.01, 0, torch.qint8), "of torch.qint8"),
    "nested": (lambda: torch.nested.nested_tensor([tensor()[0], tensor()[1]]), "a nested tensor"),
    "bits": (lambda: torch.zeros(3, H, W, dtype=torch.uint8).view(torch.bits8), "make it plain"),
}
BAD_PILS = {  # for image and mask alike
    "no pixels": (lambda: Image.new("RGB", (0, 5)), "0×5 pixels"),
    "16 bits grey": (lambda: deep(0, 0x1234), "mode I;16, of no certain range; scale it to 8 bits"),
    "mode I": (lambda: pil("I", 70000), "mode I, of no certain range"),
    "mode I;16B": (lambda: pil("I;16B", 7), "mode I;16B"),
    "mode F": (lambda: pil("F", 0.5), "mode F, of no certain range"),
    "16 bits TIFF": (lambda: opened(stored(pil("I;16", 7), "TIFF")), "mode I;16"),
    "16 bits PPM": (lambda: opened(b"P5\n1 1\n65535\n\x12\x34"), "mode I"),
    "PNG cut short": (lambda: opened(cut(stored(Image.effect_noise((99, 99), 50), "PNG"))), "cannot be read"),
    "JPEG cut short": (
        lambda: opened(cut(stored(Image.effect_noise((99, 99), 50), "JPEG"))),
        "cannot be read",
    ),
    "closed": (closed, "cannot be read as a picture"),
    "a colour that is none": (lambda: palette(transparency="red"), "cannot be read as a picture"),
}
BAD_IMAGES = {
    "values to 255": (
        lambda: PIXELS.astype(float),
        "outside [0, 1], from 0 to 255; divide it by 255, or make it uint8",
    ),
    "values from -1": (lambda: array() * 2 - 1, "outside [0, 1], from -1 to 1; halve it and add 0.5"),
    "a tensor to 255": (lambda: tensor(torch.uint8).float(), "outside [-1, 1], from 0 to 255; divide"),
    "noise": (lambda: unit_noise(0, 3, H, W), "outside [-1, 1]"),
    "nan": (lambda: np.where(HALF[..., None], NAN, array()), "not finite"),
    "infinite": (lambda: torch.full((3, H, W), -INF), "not finite"),
    "beyond float32": (lambda: np.full((H, W, 3), 1e300), "not finite"),
    "whole numbers": (lambda: PIXELS.astype(int), "int64; give uint8 from 0 to 255, or floats"),
    "words": (lambda: PIXELS.astype("u2"), "uint16; give uint8"),
    "bools": (lambda: np.ones((H, W, 3), bool), "bool; give uint8"),
    "whole tensor": (lambda: tensor(torch.uint8).long(), "int64; give uint8"),
    "grey": (lambda: array()[..., 0], "give np.stack([image] * 3, -1)"),
    "grey with an axis": (lambda: array()[..., :1], "give image.repeat(3, -1)"),
    "four channels": (lambda: np.zeros((H, W, 4)), "give image[..., :3]"),
    "channels first": (lambda: array().transpose(2, 0, 1), "give image.transpose(1, 2, 0)"),
    "several": (lambda: array()[None].repeat(2, 0), "give image[0]"),
    "one of several": (lambda: array()[None], "give image[0]"),
    "several with channels first": (lambda: np.zeros((2, 3, H, W)), "give image[0].transpose(1, 2, 0)"),
    "another size": (lambda: np.zeros((5, 7, 3)), "has 7×5 pixels, but must have 12×8; resize it"),
    "enormous": (
        lambda: np.broadcast_to(0.5, (10**6, 10**6, 3)),
        "has 1000000×1000000 pixels, but must have",
    ),
    "grey tensor": (lambda: tensor()[0], "give image.expand(3, -1, -1)"),
    "grey tensor with an axis": (lambda: tensor()[:1], "give image.expand(3, -1, -1)"),
    "tensor of four channels": (lambda: torch.zeros(4, H, W), "give image[:3]"),
    "tensor with channels last": (lambda: tensor().permute(1, 2, 0), "give image.permute(2, 0, 1)"),
    "tensor of several": (lambda: tensor().expand(2, -1, -1, -1), "give image[0]"),
    "tensor of several with channels last": (
        lambda: torch.zeros(2, H, W, 3),
        "give image[0].permute(2, 0, 1)",
    ),
    "tensor of another size": (lambda: torch.zeros(1, 3, W, H), "has 8×12 pixels, but must have 12×8"),
    "enormous tensor": (lambda: torch.zeros(1).expand(3, 10**6, 10**6), "has 1000000×1000000 pixels"),
    "two channels": (
        lambda: np.zeros((H, W, 2)),
        "must be a PIL image, an array (8, 12, 3) or a tensor (3, 8, 12)",
    ),
}
HALF_CLEAR = Image.merge("LA", [GREY, Image.fromarray(HALF).convert("L")])
BAD_MASKS = {
    "transparent": (lambda: HALF_CLEAR, "transparent in places, which may mean either; lay it on black"),
    "P and a clear index": (lambda: palette(transparency=1), "transparent in places"),
    "a clear level": (lambda: pil("L", 255, transparency=255), "transparent in places"),
    "levels 0 and 1": (lambda: Image.fromarray(HALF.astype("u1")), "0 and 1 alone, but white is 255"),
    "bytes 0 and 1": (lambda: HALF.astype("u1"), "0 and 1 alone, but white is 255; make it bool"),
    "values to 255": (lambda: HALF * 255.0, "outside [0, 1], from 0 to 255; make it bool where to repaint"),
    "labels": (lambda: HALF * 2, "from 0 to 2; make it bool"),
    "a little over": (lambda: HALF * 1.0001, "outside [0, 1]"),
    "below 0": (lambda: HALF * 2.0 - 1, "from -1 to 1; rescale it"),
    "nan": (lambda: torch.full((H, W), NAN), "not finite"),
    "another size": (
        lambda: np.zeros((5, 7)),
        "has 7×5 pixels, but must have 12×8; resize it, or make it a PIL",
    ),
    "enormous": (lambda: np.broadcast_to(True, (10**6, 10**6)), "has 1000000×1000000 pixels"),
    "colours": (lambda: np.zeros((H, W, 3)), "give mask_image[..., 0]"),
    "colours and alpha": (lambda: np.zeros((H, W, 4)), "give mask_image[..., 0]"),
    "several": (lambda: torch.zeros(2, H, W), "give mask_image[0]"),
    "several with an axis": (lambda: torch.zeros(2, 1, H, W), "give mask_image[0]"),
    "a row": (lambda: np.zeros(W), "must be a PIL image or an array (8, 12)"),
    "lying": (lambda: Image.new("L", (H, W)), "8×12 pixels and another shape than image with 12×8"),
    "square": (lambda: Image.new("L", (W, W)), "marks something else; cut or resize either"),
}
BAD_DEPTHS = {
    "a PIL image": (lambda: GREY, "give its numbers, np.asarray"),
    "nan": (lambda: np.full((H, W), NAN), "not finite"),
    "beyond float32": (lambda: np.linspace(0, 1e300, H * W).reshape(H, W), "not finite"),
    "flat": (lambda: np.ones((H, W)), "same everywhere"),
    "colours": (lambda: PIXELS, "give depth_map[..., 0]"),
    "colours and alpha": (lambda: np.zeros((H, W, 4)), "give depth_map[..., 0]"),
    "with an axis": (lambda: PIXELS[..., :1], "give depth_map[..., 0]"),
    "several": (lambda: tensor(), "give depth_map[0]"),
    "enormous": (lambda: np.broadcast_to(0.5, (10**6, 10**6)), "1000000×1000000 pixels, more than"),
    "enormous tensor": (lambda: torch.zeros(1).expand(1, 10**6, 10**6), "1000000×1000000 pixels, more than"),
}


def rows(*tables):
    return [pytest.param(*row, id=name) for table in tables for name, row in table.items()]


def one_sentence(error, name, words):
    text = str(error.value)
    assert text.startswith(name) and words in text and "\n" not in text and text[-1] != ";", text


@pytest.fixture
def door(tiny_pipe, monkeypatch):
    """A call of a pipeline that does not get as far as its networks, and takes no memory worth telling."""
    monkeypatch.setattr(Pipeline, "start", lambda *a: pytest.fail("a network ran"))
    tracemalloc.start()
    yield lambda **options: tiny_pipe("a", height=H, width=W, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("make", "words"), rows(NOT_PICTURES, BAD_PILS, BAD_IMAGES))
def test_an_image_that_cannot_be_used_is_refused(door, make, words):
    image = make()
    with pytest.raises(InputError) as error:
        door(image=image)
    one_sentence(error, "image", words)
    with pytest.raises(InputError):
        from_any(image, SIZE)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("make", "words"), rows(NOT_PICTURES, BAD_PILS, BAD_MASKS))
def test_a_mask_that_cannot_be_used_is_refused(door, make, words):
    with pytest.raises(InputError) as error:
        door(image=Image.fromarray(PIXELS), mask_image=make())
    one_sentence(error, "mask_image", words)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("make", "words"), rows(NOT_PICTURES, BAD_DEPTHS))
def test_a_depth_map_that_cannot_be_used_is_refused(make, words):
    with pytest.raises(InputError) as error:
        depth_from_any(make())
    one_sentence(error, "depth_map", words)


@pytest.mark.parametrize("kind", ["u1", ">u2", "i8", "f2", "f8", bool])
def test_a_depth_map_is_read_in_any_range(kind):
    depth = np.arange(H * W).reshape(H, W).astype(kind)
    expected = torch.tensor(depth.astype(float).tolist(), dtype=torch.float32)[None, None]
    for form in (depth, depth[::-1].copy()[::-1], depth[None], depth[None, None], np.asfortranarray(depth)):
        assert torch.equal(depth_from_any(form), expected)
    assert torch.equal(depth_from_any(expected.requires_grad_()), expected)


def test_a_bad_depth_map_is_refused_by_a_call_and_a_good_one_not_touched():
    pipe = reduced.make("sd2-depth")
    options = {"num_inference_steps": 1, "progress": False, "output_type": "latent", "seed": 1}
    with pytest.raises(InputError, match="depth_map must be"):
        pipe("a", depth_map=GREY, **options)
    near = np.linspace(0, 60000, 300).reshape(15, 20).astype(">u2")
    before = seen(near)
    found = pipe("a", depth_map=near, **options).latents
    assert seen(near) == before
    assert torch.allclose(pipe("a", depth_map=near / 60000, **options).latents, found, atol=1e-3)


@pytest.mark.parametrize("mask", [(12, 8), (24, 16), (6, 4), (11, 8), (13, 8), (120, 81)])
def test_a_mask_may_be_larger_smaller_and_a_pixel_off(mask):
    white = Image.new("L", mask, 255)
    for image in (Image.fromarray(PIXELS), PIXELS, opened(turned(6))):
        assert (Pictures(image, white).read(tiny.TINY, H, W).mask == 1).all()


@pytest.mark.parametrize("mask", [(14, 8), (10, 8), (120, 92), (8, 12)])
def test_a_mask_of_another_shape_is_refused(mask):
    for image in (Image.fromarray(PIXELS), PIXELS, tensor(), opened(turned(6))):
        with pytest.raises(InputError, match=f"mask_image has {mask[0]}×{mask[1]} .*12×8"):
            Pictures(image, Image.new("L", mask)).read(tiny.TINY, H, W)
    assert Pictures(Image.new("RGB", (50, 9)), HALF).read(tiny.TINY, H, W).mask is not None  # of the result


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_read(monkeypatch):
    bomb = png(1, 0, [], (30_000, 30_000))
    with pytest.raises(Image.DecompressionBombError):
        opened(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for read in (from_any, mask_from_any):
        with pytest.raises(InputError, match="30000×30000 pixels, more than 178956970"):
            read(opened(bomb), SIZE)
    with pytest.raises(InputError, match="cannot be read"):
        from_any(opened(png(1, 0, [], (13_000, 1))), SIZE)  # not too many, but none there


def test_a_large_picture_is_never_held_as_floats():
    image = Image.effect_noise((3000, 2000), 50)
    tracemalloc.start()
    for read in (from_any, mask_from_any):
        read(image, SIZE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e5


FILES = {
    "PNG cut short": (
        lambda: cut(stored(Image.effect_noise((99, 99), 50), "PNG")),
        "cannot be read as a picture",
    ),
    "JPEG cut short": (lambda: cut(stored(Image.effect_noise((99, 99), 50), "JPEG")), "cannot be read"),
    "a wrong checksum": (lambda: turned(1)[:29] + b"\0\0\0\0" + turned(1)[33:], "cannot be read"),
    "damaged pixels": (lambda: png(8, 2, PIXELS).replace(b"IDATx", b"IDATy"), "cannot be read"),
    "nothing": (lambda: b"", "of no kind that Pillow knows; give another file"),
    "a text": (lambda: b"I am a cat.\n" * 99, "of no kind that Pillow knows; give another file"),
    "a bomb": (lambda: png(1, 0, [], (30_000, 30_000)), "decompression bomb"),
    "no pixels": (lambda: png(8, 2, [], (0, 5)), "cannot be read"),
    "TIFF of 228 samples": (
        lambda: turned(1, "TIFF").replace(
            struct.pack("<HHIH", 277, 3, 1, 3), struct.pack("<HHIH", 277, 3, 1, 228)
        ),
        "of no kind that Pillow knows",
    ),
    "16 bits grey": (lambda: png(16, 0, np.zeros((H, W), ">u2")), "mode I;16, of no certain range"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("option", ["--image", "--mask"])
@pytest.mark.parametrize(("make", "words"), rows(FILES))
def test_the_command_refuses_a_file_with_one_sentence(
    file, tmp_path, capsys, caplog, monkeypatch, make, words, option
):
    monkeypatch.setattr(Pipeline, "start", lambda *a: pytest.fail("a network ran"))
    bad, good = tmp_path / "bad.png", tmp_path / "good.png"
    bad.write_bytes(make())
    good.write_bytes(turned(1))
    paths = {"--image": good, "--mask": good} | {option: bad}
    given = [str(part) for pair in paths.items() for part in pair]
    assert cli.main(["sample", "a", "--model", str(file), "-o", str(tmp_path / "out.png"), *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ldm: {option} {bad} ") and words in said and said.count("\n") == 1
    assert not caplog.records
    assert not (tmp_path / "out.png").exists()


def test_the_command_refuses_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.png", "a\0b.png"):
        with pytest.raises(
            InputError, match=r"^--mask .* cannot be read as a picture: .*; give another file$"
        ):
            words.picture("--mask", str(path))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_the_command_takes_the_first_of_several_pictures(tiny_pipe, tmp_path, kind):
    (tmp_path / "a").write_bytes(
        stored(
            Image.fromarray(PIXELS).quantize(9), kind, save_all=True, append_images=[Image.new("P", SIZE)] * 2
        )
    )
    first = np.asarray(Image.open(tmp_path / "a").convert("RGB"))
    assert np.array_equal(kept(tiny_pipe, words.picture("--image", str(tmp_path / "a"))), first)


@pytest.mark.filterwarnings("error")
def test_the_command_is_silent_about_a_large_file(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(turned(1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H * 2 // 3)
    with pytest.warns(Image.DecompressionBombWarning):
        opened(turned(1))
    assert words.picture("--image", str(tmp_path / "a.png")).size == SIZE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF"])
def test_a_damaged_file_is_read_or_refused(tmp_path, kind):
    rng = np.random.default_rng(0)
    sound = stored(Image.fromarray(PIXELS), kind) if kind == "GIF" else turned(6, kind)
    refused = 0
    for _ in range(150):
        data = bytearray(sound)
        for place in rng.integers(0, [len(data), 60, len(data)][: rng.integers(4)]):
            data[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(data[: rng.integers(len(data) // 2, 2 * len(data))])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = words.picture("--image", str(tmp_path / "a"))
                found = from_any(image, SIZE), mask_from_any(image.convert("L"), SIZE)
            assert all(torch.isfinite(x).all() for x in found)
        except InputError:
            refused += 1
    assert 0 < refused < 150
