"""What a training step draws, as functions of random numbers that the caller hands in.

    t ~ uniform over the schedule        eps ~ N(0, I), and with offset noise N(0, I + strength² 11')
    c = the text, or with a small probability nothing

A law of t is a map of uniform numbers: `times(u, schedule)`, `times(logit_normal(u), schedule)`,
`times(stratified(u) ** 0.7, schedule)`.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ldm.checks import dense, inside, number
from ldm.errors import InputError
from ldm.schedulers import Schedule
from ldm.training.framing import generator

DRAWS = 3  # beside those of `images`, whose draws are others


def of_rows(
    seed: int, rows: Sequence[int], uniforms: int, *shapes: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """Uniform numbers [b uniforms], and unit noise [b *shape] of each shape; float32, on the CPU.

    rows  numbers of images in the endless row of a run. What one draws depends on its number and the seed
          alone, whichever batch, part of a batch or rank it is in.
    """
    each = [generator(seed, DRAWS, row) for row in rows]
    u = torch.stack([torch.rand(uniforms, generator=g, device="cpu") for g in each])
    return u, [
        torch.stack([torch.randn(*shape, generator=g, device="cpu") for g in each]) for shape in shapes
    ]


def times(u: Tensor, schedule: Schedule) -> Tensor:
    """Training steps from uniform numbers: each of the schedule's equally likely (Ho et al. 2020, alg. 1).

    u  [b] in [0, 1]
    Returns int64 [b], 0 (clean) .. schedule.steps - 1 (noise). Raises InputError for a u outside.
    """
    u = within("u", u)
    return (u * schedule.steps).long().clamp(max=schedule.steps - 1)


def stratified(u: Tensor) -> Tensor:
    """Uniform numbers [b], one in each b-th of [0, 1] in order (after Kingma et al. 2021, app. I.1).

    A batch in random order then sees all of the schedule each time; the mean of any loss varies less.
    Raises InputError for a u outside [0, 1].
    """
    u = within("u", u)
    return (torch.arange(len(u), device=u.device) + u) / len(u)


def logit_normal(u: Tensor, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """Numbers in [0, 1] whose logit is N(mean, deviation²), from uniform ones (Esser et al. 2024, eq. 19).

    The middle of the schedule is drawn most; a mean above 0 moves that towards noise. [b] -> [b].
    Raises InputError for a u outside [0, 1].
    """
    u = within("u", u)
    return torch.sigmoid(mean + deviation * torch.special.ndtri(u))


def offset(eps: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Noise whose mean varies too, so that very dark and bright images are learnt (Guttenberg 2023).

    eps       [b c h w] unit noise
    draws     [b c] unit noise, one number for each image and channel
    strength  0.05 for SDXL, 0.1 in the source
    Returns   eps + strength * draws, [b c h w]. Raises InputError where the shapes do not fit.
    """
    draws = dense("draws", draws, f"a tensor {list(eps.shape[:2])}, one number per channel", eps.shape[:2])
    return eps + strength * rearrange(draws, "b c -> b c 1 1")


def dropped(u: Tensor, share: float) -> Tensor:
    """Which images are trained without their text, for guidance (Ho & Salimans 2022, alg. 1).

    u      [b] uniform numbers in [0, 1]
    share  how many, 0 to 1; 0.1 for Stable Diffusion
    Returns bool [b], for `torch.where(dropped(u, 0.1)[:, None, None], empty, context)`.
    Raises InputError for a u or share outside.
    """
    return within("u", u) < number("share", share, 0, 1)


def within(name: str, u: Tensor) -> Tensor:
    """Uniform numbers [b]. Raises InputError for others."""
    u = dense(name, u, "a tensor [b]", (None,))
    if not u.is_floating_point() or not inside(u, 0, 1):
        raise InputError(f"{name} must be uniform numbers in [0, 1], as torch.rand draws them")
    return u
