"""Pictures: PIL, numpy and tensors; and the parameters that a PNG file carries."""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

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


def from_any(image: Any, size: tuple[int, int], name: str = "image") -> Tensor:
    """A picture as float32 [1 3 H W] in [-1, 1], brought to `size` (width, height) if it is a PIL image.

    PIL image, numpy [H W 3] in [0, 1], or tensor [3 H W] or [1 3 H W] in [-1, 1]; arrays must have the size.
    Raises InputError for anything else and for values out of range.
    """
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image).convert("RGB")
        fitted = upright if upright.size == size else upright.resize(size, Image.Resampling.LANCZOS)
        return rearrange(torch.from_numpy(np.array(fitted)), "h w c -> 1 c h w").float() / 127.5 - 1
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3:
        tensor = rearrange(torch.from_numpy(np.ascontiguousarray(image)), "h w c -> 1 c h w").float() * 2 - 1
        valid = "[0, 1]"
    elif isinstance(image, Tensor) and image.shape[-3:-2] == (3,) and image.ndim in (3, 4):
        tensor, valid = image.detach().float().cpu(), "[-1, 1]"
        tensor = tensor if tensor.ndim == 4 else tensor[None]
    else:
        found = f"{type(image).__name__} {tuple(getattr(image, 'shape', ()))}"
        raise InputError(f"{name} must be a PIL image, an array [H W 3] or a tensor [3 H W], not {found}")
    if (tensor.shape[3], tensor.shape[2]) != size or len(tensor) != 1:
        raise InputError(
            f"{name} has shape {tuple(image.shape)}; one picture {size[0]}×{size[1]} was expected"
        )
    if not bool(((tensor >= -1.001) & (tensor <= 1.001)).all()):
        raise InputError(f"{name} has values outside {valid}, or that are not finite; rescale it")
    return tensor


def mask_from_any(mask: Any, size: tuple[int, int]) -> Tensor:
    """A mask as float32 [1 1 H W], 1 where to repaint: PIL image (white), numpy or tensor [H W] in [0, 1]."""
    if isinstance(mask, Image.Image):
        fitted = mask.convert("L").resize(size, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(fitted)).float()[None, None] / 255
    tensor = torch.as_tensor(mask).detach().float().cpu() if isinstance(mask, (np.ndarray, Tensor)) else None
    if tensor is None or tuple(tensor.shape) != (size[1], size[0]):
        found = f"{type(mask).__name__} {tuple(getattr(mask, 'shape', ()))}"
        raise InputError(f"mask_image must be a PIL image or an array {(size[1], size[0])}, not {found}")
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):
        raise InputError("mask_image has values outside [0, 1]; 1 (white) is what to repaint")
    return tensor[None, None]


def write(image: Image.Image, path: Path) -> None:
    """Save a picture, completely or not at all. Raises InputError if it cannot be written."""
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        try:
            image.save(temporary)
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
    }
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])
