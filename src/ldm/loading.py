"""From a source to a Pipeline."""

from pathlib import Path

import torch

from ldm.checkpoint import load_model
from ldm.pipeline import Pipeline


def load(
    source: str | Path | None = None,
    *,
    family: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    variant: str | None = None,
    copy: bool = False,
    ema: bool | None = None,
) -> Pipeline:
    """A Pipeline from a file or folder; from nothing, the trained model in this package.

    source   an official single file, .safetensors; a folder in the layout of diffusers; None
    family   a name of `ldm.families()`, where a file cannot tell
    dtype    of the networks. Tensors of that dtype map the file and cost no memory until they are used.
    variant  of a folder's files, such as "fp16", where there are several
    copy     read into memory what would be mapped: for files that may change while they are in use
    ema      whether the UNet is to have the moving averages of its weights; None: where the file has them and
             the official sampling took them
    The networks are in evaluation mode and frozen; to train one, `pipe.unet.train().requires_grad_(True)`.
    Raises CheckpointError, naming file and key, for what cannot be loaded exactly; InputError; DeviceError.
    """
    model = load_model(source, family=family, dtype=dtype, device=device, variant=variant, copy=copy, ema=ema)
    return Pipeline.of(model)
