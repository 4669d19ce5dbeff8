"""A network, its prediction and guidance as one function: the clean latent seen in a noisy one.

    out = eps_u + w (eps_c - eps_u)                       classifier-free guidance (Ho & Salimans 2022, eq. 6)
    out = eps_u + w' (eps_i - eps_u) + w (eps_c - eps_i)  through a picture (Brooks et al. 2023, eq. 3)
    x0  = prediction.x0(x, out, level)

A large w can be tempered: `rescaled`, `thresholded`, and an interval of levels outside which w is 1.

Latents are float32 on the solver's side and of the network's dtype on the other; the casts are here.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.conditioning import Conditioning, join
from ldm.once import Once
from ldm.schedulers import Level, Prediction
from ldm.schedulers.solvers import Denoise
from ldm.unet import UNet

AHEAD = 256  # rows of noise levels that are embedded at once


class Guidance(NamedTuple):
    """How far to go from uncond to cond, and how to temper it."""

    scale: float = 1.0  # w; at most 1 runs the conditional branch alone
    rescale: float = 0.0  # share of the conditional output's spread that is given back, 0 to 1
    interval: tuple[float, float] = (0.0, inf)  # of noise over signal, sigma / alpha; w is 1 outside
    threshold: float = 1.0  # share of the conditional x0 that may not be surpassed; 1: no limit

    def acts(self, level: Level) -> bool:
        """Whether there is any guidance at a level."""
        low, high = self.interval
        return self.scale > 1 and low <= level.ratio <= high


def rescaled(out: Tensor, cond: Tensor, share: float) -> Tensor:
    """out brought a share of the way to cond's standard deviation, per image (Lin et al. 2024, sec. 3.4)."""
    axes = (1, 2, 3)
    return out * (1 - share + share * cond.std(axes, keepdim=True) / out.std(axes, keepdim=True))


def thresholded(x0: Tensor, cond: Tensor, share: float) -> Tensor:
    """x0 cut off where it leaves what `share` of its values reach, and scaled to what they reach in cond.

    Dynamic thresholding (Saharia et al. 2022, sec. 2.3), with the conditional x0 in place of [-1, 1], because
    latents have no range of their own.
    """
    most, limit = (x.abs().flatten(1).quantile(share, dim=1).reshape(-1, 1, 1, 1) for x in (x0, cond))
    most = torch.maximum(most, limit)
    return x0.clamp(-most, most) * (limit / most)


class Denoiser:
    """`denoise(x [b c h w], level)` -> x0 [b c h w], float32.

    cond, uncond  conditionings of b rows each; uncond is not used where guidance w <= 1.
    guidance      w, or a Guidance.
    between       a conditioning on the way from uncond to cond, and its guidance w'.
    ts            the noise levels that will be asked for, in order, as far as they are known.
    """

    def __init__(
        self,
        unet: UNet,
        prediction: Prediction,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        guidance: float | Guidance = 1.0,
        between: tuple[Conditioning, float] | None = None,
        ts: Sequence[float] = (),
    ):
        self.prediction = prediction
        self.dtype = unet.conv_in.weight.dtype
        self.guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
        chain, self.weights = [cond], []
        if uncond is not None and self.guidance.scale > 1:
            chain, self.weights = [uncond, cond], [self.guidance.scale]
            if between is not None:
                chain, self.weights = [uncond, between[0], cond], [between[1], self.guidance.scale]
        self.alone = Heard(unet, cond.to(self.dtype), ts)
        self.heard = Heard(unet, join(*chain).to(self.dtype), ts) if self.weights else self.alone

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        if not self.weights or not self.guidance.acts(level):
            return self.prediction.x0(x, self.network(x, level, self.alone), level)
        count = len(self.weights) + 1
        outs = self.network(x.repeat(count, 1, 1, 1), level, self.heard).chunk(count)
        out, cond = outs[0], outs[-1]
        for weight, before, after in zip(self.weights, outs, outs[1:], strict=False):
            out = out + weight * (after - before)
        if self.guidance.rescale:
            out = rescaled(out, cond, self.guidance.rescale)
        x0 = self.prediction.x0(x, out, level)
        if self.guidance.threshold < 1:
            x0 = thresholded(x0, self.prediction.x0(x, cond, level), self.guidance.threshold)
        return x0

    def network(self, x: Tensor, level: Level, heard: "Heard") -> Tensor:
        """What the UNet says of x, in float32."""
        return heard(x.to(self.dtype), level.t).float()


class Heard:
    """A UNet that hears one conditioning: (x [b c h w], t) -> what it says. Nothing is computed twice.

    ts  as of a Denoiser
    """

    def __init__(self, unet: UNet, said: Conditioning, ts: Sequence[float]):
        self.unet, self.said, self.ts = unet, said, list(ts)
        self.context = None if said.context is None else Once(said.context)
        self.times: dict[float, Once] = {}

    def __call__(self, x: Tensor, t: float) -> Tensor:
        context, vector, beside, label = self.said
        b, x = len(x), x if beside is None else torch.cat([x, beside], dim=1)
        if torch.is_grad_enabled() or not by_itself(self.unet):
            return self.unet(x, full([t], b, x.device), context, vector, label)
        return self.unet(x, self.time(t, b, x.device), self.context)

    def time(self, t: float, b: int, device: torch.device) -> Once:
        """What the UNet hears of a noise level; of those that follow it is made in the same products."""
        if t not in self.times:
            at = self.ts.index(t) if t in self.ts else None
            ahead = [t] if at is None else self.ts[at : at + max(1, AHEAD // b)]
            vector, label = (
                z if z is None else z.repeat(len(ahead), *[1] * (z.dim() - 1))
                for z in (self.said.vector, self.said.label)
            )
            table = Once(self.unet.embed(full(ahead, b, device), vector, label))
            if at is None:  # between two levels of the path
                return table
            self.times = {t: table.at(slice(i * b, (i + 1) * b)) for i, t in enumerate(ahead)}
        return self.times[t]


def by_itself(unet: nn.Module) -> bool:
    """Whether nobody looks at what a UNet is given (hooks) or stands in for it (as a compiled one does)."""
    replaced = "forward" in vars(unet) and not getattr(unet, "packed", False)
    return isinstance(unet, UNet) and not (unet._forward_hooks or unet._forward_pre_hooks or replaced)


def full(ts: Sequence[float], b: int, device: torch.device) -> Tensor:
    """Each noise level for b images, [n b]."""
    return torch.cat([torch.full((b,), t, dtype=torch.float32, device=device) for t in ts])


def grouped(parts: Sequence[tuple[list[int], Denoise]]) -> Denoise:
    """Denoisers of some rows of a batch each, as one of all."""
    if len(parts) == 1:
        return parts[0][1]

    order = [row for rows, _ in parts for row in rows]
    places = [order.index(row) for row in range(len(order))]

    def denoise(x: Tensor, level: Level) -> Tensor:
        images = x.unbind()  # a list as an index would be sent to a GPU at every call
        x0 = [y for rows, part in parts for y in part(torch.stack([images[i] for i in rows]), level)]
        return torch.stack([x0[place] for place in places])

    return denoise
