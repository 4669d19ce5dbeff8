"""What can be done besides text to image: start elsewhere on the path, know a part of x0."""

import torch.nn.functional as F
from torch import Tensor

from ldm.errors import InputError
from ldm.schedulers import Schedule
from ldm.schedulers.solvers import Denoise
from ldm.schedulers.spacing import Path


def shorten(path: Path, strength: float) -> Path:
    """The part of a path that image to image follows: its last `int(steps * strength)` steps.

    Raises InputError where that is no step at all.
    """
    steps = len(path) - 1
    run = int(steps * strength)
    if run < 1:
        raise InputError(f"strength {strength} of {steps} steps is less than one step; raise either")
    return path[steps - run :]


def between(path: Path, schedule: Schedule, start: float, end: float) -> Path:
    """The part of a path from one share of the training steps to another, for models that share a path.

    The first share is the noisiest. Two parts that meet, of 0 to 0.8 and of 0.8 to 1, are the whole path.
    """
    low, high = (round(schedule.steps * (1 - share)) for share in (end, start))
    *levels, _ = path
    first = sum(level.t >= high for level in levels) if start > 0 else 0
    last = sum(level.t >= low for level in levels) if end < 1 else len(levels)
    if last <= first:
        raise InputError(
            f"denoising_start {start} to denoising_end {end} has no step of {len(levels)}; "
            "raise num_inference_steps"
        )
    return path[first : last + 1]


def noised(z: Tensor, eps: Tensor, path: Path) -> Tensor:
    """Where image to image starts (Meng et al. 2022): x = alpha z + sigma eps at the path's first level."""
    first, *_ = path
    return first.alpha * z + first.sigma * eps


def knowing(denoise: Denoise, z: Tensor, mask: Tensor) -> Denoise:
    """Inpainting with an ordinary model: outside the mask the clean latent is not guessed but known.

    Every solver then carries the known region along alpha z + sigma eps by itself and ends on z
    (Lugmayr et al. 2022, eq. 8, said of x0).

    z     [b c h w] the known latent
    mask  [1 1 h w], 1 where to repaint
    """
    return lambda x, level: z.lerp(denoise(x, level), mask)


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """[1 1 H W] -> [1 1 h w]: a latent pixel is repainted if any of its pixels is."""
    return F.max_pool2d(mask, factor)


def paste(images: Tensor, original: Tensor, mask: Tensor) -> Tensor:
    """The original pixels wherever the mask is 0; all in [-1, 1], mask [1 1 H W]."""
    return original.lerp(images, mask)
