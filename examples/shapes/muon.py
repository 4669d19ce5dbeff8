"""Muon (Jordan et al. 2024): momentum for matrices, with every singular value of a step made about one.

    m = b m + (1 - b) g,    u = (1 - b) g + b m,    w = w - lr (size polar(u) + decay w)

polar(U S V^T) = U V^T; a convolution [o i 3 3] is the matrix [o 9i]. With size = 0.2 sqrt(max(rows, columns))
a step is as large as AdamW's (Liu et al. 2025), so that one learning rate serves both. Vectors, and the first
and last layer, take AdamW (Loshchilov & Hutter 2019, alg. 2).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # x -> ax + bx³ + cx⁵ drives (0, 1] to about 1 (Jordan et al.)
ROUNDS = 4
TINY = 1e-8
ENDS = ("conv_in.", "conv_out.")  # how the names of the first and the last layer begin


class Muon(torch.optim.Optimizer):
    """Muon for some matrices and convolutions, AdamW for other parameters.

    beta   of Muon's momentum; betas: of AdamW's two means
    decay  of all weights
    """

    def __init__(
        self, matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter], lr: float,
        beta: float = 0.95, betas: Sequence[float] = (0.9, 0.99), decay: float = 0.01,
    ):  # fmt: skip
        groups = [{"params": list(matrices), "muon": True}, {"params": list(others), "muon": False}]
        same = {"lr": lr, "beta": beta, "betas": tuple(betas), "decay": decay, "steps": 0}
        super().__init__([group for group in groups if group["params"]], same)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        for group in self.param_groups:
            group["steps"] += 1
            params = [p for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(params, 1 - group["lr"] * group["decay"])
            (self._turn if group["muon"] else self._scale)(params, group)

    def _turn(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Muon's step."""
        for p, update in zip(params, polar([self._ahead(p, group["beta"]) for p in params]), strict=True):
            p.sub_(update.reshape(p.shape), alpha=group["lr"] * 0.2 * max(update.shape) ** 0.5)

    def _ahead(self, p: nn.Parameter, beta: float) -> Tensor:
        assert p.grad is not None
        momentum = self._held(p, "momentum").lerp_(p.grad, 1 - beta)
        return p.grad.lerp(momentum, beta).flatten(1)

    def _scale(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        """AdamW's step: m / (sqrt(v) + a very small number), both means without their beginning at 0."""
        (first, second), steps = group["betas"], group["steps"]
        for p in params:
            assert p.grad is not None
            m = self._held(p, "mean").lerp_(p.grad, 1 - first) / (1 - first**steps)
            v = self._held(p, "square").lerp_(p.grad.square(), 1 - second) / (1 - second**steps)
            p.addcdiv_(m, v.sqrt_().add_(TINY), value=-group["lr"])

    def _held(self, p: nn.Parameter, name: str) -> Tensor:
        slots = self.state[p]
        if name not in slots:
            slots[name] = torch.zeros_like(p)
        held: Tensor = slots[name]
        return held


def polar(matrices: list[Tensor]) -> list[Tensor]:
    """The nearest half-orthogonal matrix of each, roughly: singular values come to lie in about [0.7, 1.2].

    Newton and Schulz's iteration on the Gram matrices alone, many of one size at once: with A = X X^T and
    B = a + bA + cA², X <- BX means A <- BAB, so that X itself is multiplied once at the end.
    """
    ones = [m / (m.norm() + 1e-12) for m in matrices]  # squares of very small numbers would be lost
    wide = [m if m.shape[0] <= m.shape[1] else m.T for m in ones]
    out = list(wide)
    for rows in {len(x) for x in wide}:
        those = [i for i, x in enumerate(wide) if len(x) == rows]
        grams = torch.stack([wide[i] @ wide[i].T for i in those])
        for i, factor in zip(those, _roots(grams), strict=True):
            out[i] = factor @ wide[i]
    return [x if x.shape == m.shape else x.T for x, m in zip(out, matrices, strict=True)]


def _roots(grams: Tensor) -> Tensor:
    """A -> about A^(-1/2), for positive matrices [b n n]."""
    size = grams.norm(dim=(1, 2), keepdim=True) + 1e-12  # at least the square of the largest singular value
    gram, root = grams / size, None
    eye = torch.eye(gram.shape[-1], device=gram.device)
    a, b, c = NEWTON_SCHULZ
    for i in range(ROUNDS):
        factor = a * eye + gram @ (b * eye + c * gram)
        root = factor if root is None else factor @ root
        if i < ROUNDS - 1:
            gram = factor @ gram @ factor
    assert root is not None
    return root / size.sqrt()


def split(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices and convolutions of a network but for its first and last layer, and all else."""
    inner, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, p in net.named_parameters():
        (inner if p.ndim > 1 and not name.startswith(ENDS) else others).append(p)
    return inner, others
