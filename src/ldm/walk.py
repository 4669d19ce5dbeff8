"""Walking a solver's steps to the last one."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.errors import NumericError
from ldm.request import Callback
from ldm.schedulers import Level


class Moment(NamedTuple):
    """One step of a solver; all tensors [b c h w] on the CPU."""

    level: Level  # where the network was asked
    x: Tensor  # what it was shown
    x0: Tensor  # what it took for the clean latent
    eps: Tensor  # and for the noise: (x - alpha x0) / sigma


def run(
    start: Tensor,
    path: Sequence[Level],
    steps: Iterator,
    callback: Callback | None,
    progress: bool,
    record: bool,
) -> tuple[Tensor, list[Moment]]:
    """Walk the steps to the last latent, telling the callback and one bar, and record them if asked."""
    if progress:
        from tqdm.auto import tqdm

        steps = tqdm(steps, total=len(path) - 1, desc="sampling")
    finite, moments, x = [], [], start
    for i, ((now, nxt), (after, x0)) in enumerate(zip(pairwise(path), steps, strict=True)):
        if record:
            eps = (x - now.alpha * x0) / now.sigma
            moments.append(Moment(now, *(tensor.detach().cpu().clone() for tensor in (x, x0, eps))))
        x = after
        finite.append(torch.isfinite(x).all())  # read after the loop: a look inside would halt a GPU
        if callback is not None:
            callback(i, nxt, x, x0)
    check_finite(finite, "sampling")
    return x, moments


def check_finite(finite: list[Tensor], stage: str) -> None:
    """Raises NumericError naming the stage and the first step that is not finite."""
    good = torch.stack(finite).tolist()
    if not all(good):
        step = f" at step {good.index(False) + 1} of {len(good)}" if len(good) > 1 else ""
        raise NumericError(f"{stage} gave values that are not finite{step}; try dtype=torch.float32")
