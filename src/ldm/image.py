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
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.checks import Shape, are_bytes, inside, real
from ldm.errors import InputError


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
    return rearrange(images, "b c h w -> b h w c").cpu().numpy()


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
    """A picture as float32 [1 3 H W] in [-1, 1], brought to `size` (width, height) if it is a PIL image.

    PIL image, numpy [H W 3] in [0, 1], or tensor [3 H W] or [1 3 H W] in [-1, 1]; uint8 is 0..255 in both.
    Arrays must have the size. Raises InputError for anything else and for values out of range.
    """
    w, h = size
    if isinstance(image, Image.Image):
        image = fitted(image, size, name, "RGB", Image.Resampling.LANCZOS)
    array = isinstance(image, np.ndarray)
    shapes: list[Shape] = [(h, w, 3)] if array else [(3, h, w), (1, 3, h, w)]
    wanted = f"a PIL image, an array {(h, w, 3)} or a tensor {(3, h, w)}"
    x, valid = real(name, image, wanted, *shapes).cpu(), "[-1, 1]"
    if are_bytes(image):
        x = x / 127.5 - 1
    elif array:
        x, valid = x * 2 - 1, "[0, 1]"
    if not inside(x, -1.001, 1.001):
        raise InputError(f"{name} has values outside {valid}, or that are not finite; rescale it")
    return rearrange(x, "h w c -> 1 c h w") if array else x.reshape(1, 3, h, w)


def mask_from_any(mask: Any, size: tuple[int, int]) -> Tensor:
    """A mask as float32 [1 1 H W], 1 where to repaint, brought to `size` if it is a PIL image (white).

    PIL image, or numpy or tensor [H W], [1 H W], [1 1 H W] or [H W 1]: bool, in [0, 1], or uint8 0..255.
    Raises InputError for anything else, for values out of range, and for bytes that are only 0 and 1.
    """
    w, h = size
    if isinstance(mask, Image.Image):
        mask = fitted(mask, size, "mask_image", "L", Image.Resampling.NEAREST)
    wanted = f"a PIL image or an array {(h, w)}"
    x = real("mask_image", mask, wanted, (h, w), (1, h, w), (1, 1, h, w), (h, w, 1)).cpu()
    if are_bytes(mask):
        if x.max() == 1:
            raise InputError("mask_image has bytes 0 and 1 alone, but white is 255; make it bool")
        x = x / 255
    if not inside(x, 0, 1):
        raise InputError("mask_image has values outside [0, 1]; 1 (white) is what to repaint")
    return x.reshape(1, 1, h, w)


def fitted(
    image: Image.Image, size: tuple[int, int], name: str, mode: str, how: Image.Resampling
) -> np.ndarray:
    """A PIL image upright and brought to `size` (width, height), as uint8 of a mode. Raises InputError."""
    if image.mode == "F" or image.mode.startswith("I;16"):
        raise InputError(f"{name} has PIL's mode {image.mode}, of no certain range; scale it to 8 bits")
    if 0 in image.size:
        raise InputError(
            f"{name} is a PIL image of {image.size[0]}×{image.size[1]} pixels; give one with some"
        )
    try:
        upright = ImageOps.exif_transpose(image).convert(mode)
    except (OSError, ValueError) as error:  # cut short, or closed
        raise InputError(f"{name} cannot be read as a picture: {error}; open it again") from error
    return np.array(upright if upright.size == size else upright.resize(size, how))


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
