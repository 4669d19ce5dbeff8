"""Small pictures of latents without the decoder: each latent pixel's colour by a linear map.

    rgb = z W + b           z [c], of the scale that the UNet knows; rgb in [-1, 1]

For the autoencoders of Stable Diffusion such maps are published; for others W and b are the least squares fit
to what the encoder makes of plain colours.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ldm.checks import dense
from ldm.coding import encode
from ldm.family import Family
from ldm.model import Model

SHADES = 4  # of each of red, green and blue, in the chart that is encoded
RIDGE = 1e-3  # of the variance of a latent, so that what plain colours do not tell counts little
SIDE = 3  # latent pixels along a side of one of its squares

# By the scale of the autoencoders of Stable Diffusion 1 and 2, and of SDXL: rows of W, then b. The figures
# are those of ComfyUI's latent_formats.py (GPL-3.0).
KNOWN = {
    0.18215: ((0.3512, 0.2297, 0.3227), (0.3250, 0.4974, 0.2350), (-0.2829, 0.1762, 0.2721),
              (-0.2120, -0.2616, -0.7177), (0.0, 0.0, 0.0)),
    0.13025: ((0.3651, 0.4232, 0.4341), (-0.2533, -0.0042, 0.1068), (0.1076, 0.1111, -0.0362),
              (-0.3165, -0.2492, -0.2188), (0.1084, -0.0175, -0.0011)),
}  # fmt: skip


def previewer(model: Model) -> Callable[[Tensor], Tensor]:
    """A function of latents [b c h w] -> images [b 3 h w] in [-1, 1], a pixel for each latent one.

    For models without a published map a small chart of colours is encoded, once, here. The function raises
    InputError for anything but latents.
    """
    rows = published(model.family)
    table = fitted(model) if rows is None else torch.tensor(rows, dtype=torch.float32)

    channels = model.family.vae.latent_channels
    shape = (None, channels, None, None)

    def preview(latents: Tensor) -> Tensor:
        latents = dense("latents", latents, f"a tensor [b {channels} h w]", shape)
        weight, bias = table[:-1].to(latents.device), table[-1].to(latents.device)
        rgb = rearrange(latents.float(), "b c h w -> b h w c") @ weight + bias
        return rearrange(rgb, "b h w c -> b c h w").clamp(-1, 1)

    return preview


def published(family: Family) -> tuple[tuple[float, ...], ...] | None:
    """The known map of a family's autoencoder."""
    vae = family.vae
    return KNOWN.get(vae.scale) if (vae.latent_channels, vae.factor, vae.codes) == (4, 8, None) else None


@torch.no_grad()
def fitted(model: Model) -> Tensor:
    """W and b [c + 1, 3] with which latents of plain colours give these colours."""
    shade = torch.linspace(-1, 1, SHADES, dtype=torch.float32, device="cpu")
    colours = torch.cartesian_prod(shade, shade, shade)
    order = torch.arange(len(colours), device="cpu") * 37 % len(colours)  # so that neighbours are unlike
    factor = model.family.vae.factor
    chart = repeat(
        colours[order], "(h w) c -> 1 c (h y) (w x)", h=8, y=SIDE * factor, x=SIDE * factor
    ).contiguous()
    z = rearrange(encode(model, chart), "1 c h w -> (h w) c")
    rgb = rearrange(F.avg_pool2d(chart, factor), "1 c h w -> (h w) c").to(z)
    z = torch.cat([z, torch.ones_like(z[:, :1])], dim=1).double()
    ridge = RIDGE * len(z) * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return torch.linalg.solve(z.T @ z + ridge, z.T @ rgb.double()).float()
