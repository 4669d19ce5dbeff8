"""A network, its prediction and guidance as one function: the clean latent seen in a noisy one.

    out = eps_u + w (eps_c - eps_u)              classifier-free guidance (Ho & Salimans 2022, eq. 6)
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
    """

    def __init__(
        self,
        unet: UNet,
        prediction: Prediction,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        guidance: float = 1.0,
    ):
        self.unet, self.prediction, self.guidance = unet, prediction, guidance
        self.guided = uncond is not None and guidance > 1
        both = join(uncond, cond) if uncond is not None and self.guided else cond
        self.dtype = unet.conv_in.weight.dtype
        self.context = both.context.to(self.dtype)

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        if self.guided:
            out_u, out_c = self.network(torch.cat([x, x]), level).chunk(2)
            out = torch.lerp(out_u, out_c, self.guidance)
        else:
            out = self.network(x, level)
        return self.prediction.x0(x, out, level)

    def network(self, x: Tensor, level: Level) -> Tensor:
        t = torch.full((len(x),), level.t, dtype=torch.float32, device=x.device)
        return self.unet(x.to(self.dtype), t, self.context).float()
