"""Pictures: PIL, numpy and tensors; and the parameters that a PNG file carries."""

import io
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.checks import are_bytes
from ldm.errors import InputError
from ldm.layouts import ARRAYS, MASKS, TENSORS, laid_out, within
from ldm.reading import colours, luma


class Picture(Image.Image):
    """A PIL image that writes the parameters it was made with into any PNG file it is saved to."""

    parameters: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def of(cls, array: np.ndarray, parameters: dict[str, Any]) -> "Picture":
        """From uint8 [H W 3]."""
        plain = Image.fromarray(array)
        picture = cls()
        picture.__dict__.update(plain.__dict__)
        picture.parameters = parameters
        return picture

    def __getstate__(self) -> list[Any]:
        return [super().__getstate__(), dict(self.parameters)]

    def __setstate__(self, state: list[Any]) -> None:
        plain, parameters = state
        super().__setstate__(plain)
        self.parameters = parameters

    def save(self, fp: Any, format: str | None = None, **options: Any) -> None:
        """As PIL's; PNG files get the texts "parameters" (A1111's form) and "ldm" (JSON)."""
        if self.parameters:
            options.setdefault("pnginfo", png_info(self.parameters))
        super().save(fp, format, **options)


def to_unit(images: Tensor) -> Tensor:
    """[b 3 H W] in about [-1, 1] -> float32 in [0, 1]."""
    return (images.float() / 2 + 0.5).clamp(0, 1)


def to_numpy(images: Tensor) -> np.ndarray:
    """[b 3 H W] in [0, 1] -> float32 [b H W 3] in [0, 1]."""
    return rearrange(images, "b c h w -> b h w c").detach().cpu().numpy()


def to_pil(images: np.ndarray, parameters: Sequence[dict[str, Any]]) -> list[Picture]:
    """[b H W 3] in [0, 1] -> b PIL images, each with its parameters."""
    levels = (images * 255).round().astype(np.uint8)
    return [Picture.of(level, own) for level, own in zip(levels, parameters, strict=True)]


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """PIL images of one size, row by row, in a sheet about as wide as it is high."""
    columns = int(np.ceil(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    w, h = images[0].size
    sheet = Image.new("RGB", (columns * w, rows * h), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * w, i // columns * h))
    return sheet


def png_bytes(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def from_any(image: Any, size: tuple[int, int], name: str = "image") -> Tensor:
    """A picture as float32 [1 3 H W] in [-1, 1] on the CPU. `size` is its width and height.

    A PIL image is brought to `size`, squeezed if its shape is another, and read as `reading` says: upright, a
    transparent one laid on white, modes I and F refused. Arrays must have the size: numpy [H W 3] in [0, 1],
    tensors [3 H W] or [1 3 H W] in [-1, 1]; bytes (uint8) are 0..255 in both, other whole numbers refused.
    Raises InputError for anything else and for values out of range.
    """
    if isinstance(image, Image.Image):
        image = colours(image, size, name)
    array, (w, h) = isinstance(image, np.ndarray), size
    wanted = f"a PIL image, an array {(h, w, 3)} or a tensor {(3, h, w)}"
    x = laid_out(name, image, wanted, ARRAYS if array else TENSORS, size)
    if are_bytes(image):
        x = x / 127.5 - 1
    elif not (image.dtype.kind == "f" if array else image.is_floating_point()):
        raise InputError(f"{name} has numbers of {image.dtype}; give uint8 from 0 to 255, or floats")
    elif array:
        x = 2 * within(name, x, 0, "divide it by 255, or make it uint8", "halve it and add 0.5") - 1
    else:
        x = within(name, x, -1, "divide it by 127.5 and take 1 away, or make it uint8", "rescale it")
    return rearrange(x, "h w c -> 1 c h w") if array else x.reshape(1, 3, h, w)


def mask_from_any(mask: Any, size: tuple[int, int]) -> Tensor:
    """A mask as float32 [1 1 H W] on the CPU. `size` is its width and height.

    1 (white) is what to repaint, 0 (black) what to keep; between, both are mixed in that share.
    A PIL image is brought to `size`, and read as `reading` says: upright, colours as their luma, a
    transparent one refused. Arrays must have the size, numpy or tensor: [H W], [1 H W], [1 1 H W] or [H W 1],
    bool, in [0, 1], or uint8 0..255.
    Raises InputError for anything else, for values out of range, and for bytes that are only 0 and 1.
    """
    name = "mask_image"
    if isinstance(mask, Image.Image):
        mask = luma(mask, size, name)
    w, h = size
    x = laid_out(name, mask, f"a PIL image or an array {(h, w)}", MASKS, size)
    if are_bytes(mask):
        if x.max() == 1:
            raise InputError("mask_image has bytes 0 and 1 alone, but white is 255; make it bool")
        x = x / 255
    x = within(name, x, 0, "make it bool where to repaint, or uint8", "rescale it", 0)
    return x.reshape(1, 1, h, w)


def write(image: Image.Image, path: Path, **options: Any) -> None:
    """Save a picture, options as PIL's, completely or not at all. Raises InputError if that fails."""
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        try:
            image.save(temporary, **options)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def png_info(parameters: Mapping[str, Any]) -> PngInfo:
    """The texts of a PNG file: A1111's "parameters" and, complete, our own "ldm" in JSON."""
    info = PngInfo()
    info.add_itxt("parameters", a1111_text(parameters))
    info.add_itxt("ldm", json.dumps(dict(parameters), ensure_ascii=False))
    return info


def a1111_text(p: Mapping[str, Any]) -> str:
    """Prompt, negative prompt and settings as AUTOMATIC1111's web UI writes them."""
    lines = [str(p["prompt"] or "")]
    if p["negative_prompt"]:
        lines.append(f"Negative prompt: {p['negative_prompt']}")
    settings = {
        "Steps": p["num_inference_steps"],
        "Sampler": p["sampler"],
        "CFG scale": p["guidance_scale"],
        "Seed": p["seed"],
        "Size": f"{p['width']}x{p['height']}",
        "Model": p["family"],
        "Schedule type": p.get("spacing"),
        "Denoising strength": p.get("strength"),
        "Clip skip": p["clip_skip"] + 1 if "clip_skip" in p else None,
        "Variation seed": p.get("variation_seed"),
        "Variation seed strength": p.get("variation_strength"),
    }
    return "\n".join(
        [*lines, ", ".join(f"{name}: {value}" for name, value in settings.items() if value is not None)]
    )
