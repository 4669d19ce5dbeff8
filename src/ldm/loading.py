"""From a source to a Pipeline."""

from pathlib import Path
from typing import Any

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
    revision: str | None = None,
    fast: bool = False,
) -> Pipeline:
    """A Pipeline from a file or folder; from nothing, the trained model in this package.

    source   an official single file, .safetensors or .ckpt; a folder in the layout of diffusers; None;
             with the extra `hub` also a name there: org/name, or org/name/file.safetensors
    family   a name of `ldm.families()`, where a file cannot tell
    dtype    of the networks. Tensors of that dtype map the file and cost no memory until they are used. The
             values of SDXL's autoencoder overflow float16: there it is float32, unless its folder says
             that it need not be (force_upcast)
    variant  of a folder's files, such as "fp16", where there are several
    copy     read into memory what would be mapped: for files that may change while they are in use
    ema      whether the UNet is to have the moving averages of its weights; None: where the file has them and
             the official sampling took them
    revision of a name on the hub: a branch, tag or commit
    fast     UNet and autoencoder are made ready to draw in less time, on a CPU in float32 (`ldm.packed`: the
             same to rounding, in less memory), or on a GPU in bfloat16 or float16, with the extra `triton`
             (docs/speed.md); they cannot be trained, changed, moved or saved then
    The networks are in evaluation mode and frozen; to train one, `pipe.unet.train().requires_grad_(True)`.
    Raises CheckpointError, naming file and key, for what cannot be loaded exactly; InputError; DeviceError.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device, "variant": variant, "copy": copy, "ema": ema}
    pipe = Pipeline.of(load_model(source, family=family, revision=revision, **options))
    return pipe.pack() if fast else pipe
