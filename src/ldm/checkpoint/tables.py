"""The numbers that a single file has beside its weights: read, and made where there were none."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ldm.checkpoint import original
from ldm.checkpoint.files import File
from ldm.clip.config import CLIPConfig
from ldm.errors import CheckpointError
from ldm.family import Family
from ldm.schedulers import Schedule, linear, scaled_linear

CLOSE = 1e-4  # relative; tables are float32, and some files were halved on the way


def with_tables(file: File, family: Family) -> Family:
    """A family with the `betas` and the `scale_factor` of a file, where it has them.

    Raises CheckpointError for numbers that are none of a schedule or a scale.
    """
    if "scale_factor" in file.entries:
        scale = numbers(file, "scale_factor")
        if scale.size != 1 or not 0 < scale.item() < 1e4:
            raise CheckpointError(
                f"{file.path}: scale_factor is {scale.tolist()}, and must be one positive number; "
                "get the file again"
            )
        family = replace(family, vae=replace(family.vae, scale=scale.item()))
    if "betas" not in file.entries:
        return family
    betas = numbers(file, "betas")
    others = file.entries["alphas_cumprod"].shape if "alphas_cumprod" in file.entries else betas.shape
    if betas.ndim != 1 or len(betas) < 2 or betas.shape != others:
        raise CheckpointError(f"{file.path}: betas have the shape {betas.shape}; get the file again")
    if not ((betas > 0) & (betas < 1)).all():
        raise CheckpointError(f"{file.path}: betas are not between 0 and 1; get the file again")
    found = Schedule(float(betas[0]), float(betas[-1]), len(betas))
    for schedule in (family.schedule, *(replace(found, law=law) for law in (scaled_linear, linear))):
        if len(betas) == schedule.steps and np.allclose(betas, schedule.betas, rtol=CLOSE, atol=0):
            return replace(family, schedule=schedule)
    raise CheckpointError(f"{file.path}: betas follow no schedule that is known here; get another file")


def numbers(file: File, name: str) -> np.ndarray:
    """The numbers of a tensor. Raises CheckpointError for one that is of whole numbers."""
    tensor = file.read(name)
    if not tensor.is_floating_point():
        raise CheckpointError(f"{file.path}: {name} is of {tensor.dtype}; get the file again")
    return tensor.double().numpy()


def extras(family: Family) -> dict[str, Tensor]:
    """The tables that every official file of a family carries beside the weights, in this layout's names."""
    out = {}
    for text, prefix in zip(family.texts, original.prefixes(family), strict=True):
        if prefix in (original.CLIP, original.SGM_CLIP) and isinstance(text.config, CLIPConfig):
            out[f"{prefix}embeddings.position_ids"] = torch.arange(text.config.length)[None]
    if family.name == "ldm-churches256":
        out["scale_factor"] = torch.tensor(family.vae.scale)
    if family.name == "sd-turbo":
        ratios = family.schedule.sigmas / family.schedule.alphas
        return out | {"denoiser.sigmas": torch.from_numpy(ratios).float()}
    return out if family.name.startswith("sdxl") else out | schedule_tables(family.schedule)


def schedule_tables(schedule: Schedule) -> dict[str, Tensor]:
    """The forward process as float32 tables [T] (Ho et al. 2020, eq. 4 and 7), by their original names."""
    betas, bar = schedule.betas, schedule.alpha_bar
    before = np.append(1.0, bar[:-1])
    variance = betas * (1 - before) / (1 - bar)
    with np.errstate(divide="ignore"):  # where no signal is left, these end in infinity
        recip, recipm1 = np.sqrt(1 / bar), np.sqrt(1 / bar - 1)
    tables = {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(bar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - bar),
        "log_one_minus_alphas_cumprod": np.log(1 - bar),
        "sqrt_recip_alphas_cumprod": recip,
        "sqrt_recipm1_alphas_cumprod": recipm1,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - bar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - bar),
    }
    return {name: torch.from_numpy(values).float() for name, values in tables.items()}
