"""Walking a solver's steps to the last one."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm.errors import NumericError
from ldm.request import Callback


def run(steps: Iterator, total: int, callback: Callback | None, progress: bool) -> Tensor:
    """Walk the steps to the last latent, telling the callback and one progress bar."""
    if progress:
        from tqdm.auto import tqdm

        steps = tqdm(steps, total=total, desc="sampling")
    finite = []
    x = torch.empty(0, device="cpu")
    for i, (level, (x, x0)) in enumerate(steps):
        finite.append(torch.isfinite(x).all())  # read after the loop: a look inside would halt a GPU
        if callback is not None:
            callback(i, level, x, x0)
    check_finite(finite, "sampling")
    return x


def check_finite(finite: list[Tensor], stage: str) -> None:
    """Raises NumericError naming the stage and the first step that is not finite."""
    good = torch.stack(finite).tolist()
    if not all(good):
        step = f" at step {good.index(False) + 1} of {len(good)}" if len(good) > 1 else ""
        raise NumericError(f"{stage} gave values that are not finite{step}; try dtype=torch.float32")
