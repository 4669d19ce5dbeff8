"""A network, its prediction and guidance as one function: the clean latent seen in a noisy one.

    out = eps_u + w (eps_c - eps_u)                       classifier-free guidance (Ho & Salimans 2022, eq. 6)
    out = eps_u + w' (eps_i - eps_u) + w (eps_c - eps_i)  through a picture (Brooks et al. 2023, eq. 3)
    x0  = prediction.x0(x, out, level)

Latents are float32 on the solver's side and of the network's dtype on the other; the casts are here.
"""

import torch
from torch import Tensor

from ldm.conditioning import Conditioning, join
from ldm.schedulers import Level, Prediction
from ldm.unet import UNet


class Denoiser:
    """`denoise(x [b c h w], level)` -> x0 [b c h w], float32.

    cond, uncond  conditionings of b rows each; uncond is not used where guidance w <= 1.
    between       a conditioning on the way from uncond to cond, and its guidance w'.
    """

    def __init__(
        self,
        unet: UNet,
        prediction: Prediction,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        guidance: float = 1.0,
        between: tuple[Conditioning, float] | None = None,
    ):
        self.unet, self.prediction = unet, prediction
        self.dtype = unet.conv_in.weight.dtype
        chain, self.weights = [cond], []
        if uncond is not None and guidance > 1:
            chain, self.weights = [uncond, cond], [guidance]
            if between is not None:
                chain, self.weights = [uncond, between[0], cond], [between[1], guidance]
        self.heard = join(*chain).to(self.dtype)

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        outs = self.network(x.repeat(len(self.weights) + 1, 1, 1, 1), level).chunk(len(self.weights) + 1)
        out = outs[0]
        for weight, before, after in zip(self.weights, outs, outs[1:], strict=False):
            out = out + weight * (after - before)
        return self.prediction.x0(x, out, level)

    def network(self, x: Tensor, level: Level) -> Tensor:
        t = torch.full((len(x),), level.t, dtype=torch.float32, device=x.device)
        context, vector, beside, label = self.heard
        x = x.to(self.dtype)
        x = x if beside is None else torch.cat([x, beside], dim=1)
        return self.unet(x, t, context, vector, label).float()
