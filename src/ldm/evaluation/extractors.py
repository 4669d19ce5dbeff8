"""What looks at pictures and says numbers: a function of images, float32 [b 3 H W] in [-1, 1], to [b d].

    pixels         means of the colours over 8×8 fields, d = 192. It needs nothing, and sees nothing but
                   where which colour is: for trials, and for pictures that differ in little else
    clip:FOLDER    the image embeddings of a CLIP as transformers saves it (extra `eval`)
    fidelity       the last pooling layer of torch-fidelity's Inception, d = 2048: FID and KID as papers
                   give them (extra `eval`). It fetches its weights itself; fidelity:FILE reads them there
    FILE.py:NAME   the caller's own function; the file is run

What an extra installs is imported where it is used.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm.checks import nearest
from ldm.devices import find_device
from ldm.errors import InputError

Extract = Callable[[Tensor], Tensor]
FIELDS = 8  # along a side
NAMES = "pixels, clip:FOLDER, fidelity, fidelity:FILE and FILE.py:NAME"
NEEDS = "needs {}, which is not there whole ({}); pip install 'ldm[eval]'"


def extractor(name: str, device: torch.device | str = "cpu") -> Extract:
    """What a name stands for, as the module says it. Networks are frozen and on the device.

    Raises InputError for another name, and for files and packages that are not there or not whole;
    DeviceError.
    """
    device = find_device(device)
    kind, colon, rest = name.partition(":")
    if name == "pixels":
        return pixels
    if kind == "clip" and rest:
        return clip(Path(rest), device)
    if kind == "fidelity" and bool(colon) == bool(rest):
        return fidelity(Path(rest) if rest else None, device)
    file, _, function = name.rpartition(":")
    if file.endswith(".py") and function:
        return own(Path(file), function, device)
    raise InputError(f"features cannot be {name!r}; there are {NAMES}")


def pixels(images: Tensor) -> Tensor:
    """Means of the colours over 8×8 fields: [b 3 H W] in [-1, 1] -> [b 192] in [-1, 1]."""
    return rearrange(F.adaptive_avg_pool2d(images, FIELDS), "b c h w -> b (c h w)")


def clip(folder: Path, device: torch.device) -> Extract:
    """CLIP's image embeddings, not normalised, of pictures brought to its size as it was trained on them.

    Raises InputError.
    """
    try:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
    except ImportError as error:
        raise InputError(f"clip:{folder} " + NEEDS.format("transformers", error)) from error
    if not (folder / "config.json").is_file():
        raise InputError(
            f"clip:{folder} has no config.json; give the folder of a CLIP as transformers saves it"
        )
    try:
        model, report = CLIPVisionModelWithProjection.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises a dozen kinds
        raise InputError(f"clip:{folder} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"clip:{folder} lacks {len(missing)} tensors of CLIP's eye, such as {missing[0]}")
    model, side = model.eval().requires_grad_(False).to(device), model.config.image_size
    prepare = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )  # the rest is as OpenAI has it

    def look(images: Tensor) -> Tensor:
        every = list(rearrange(levels(images), "b c h w -> b h w c").numpy())
        ready = prepare(every, return_tensors="pt", input_data_format="channels_last")
        return model(ready["pixel_values"].to(device)).image_embeds

    return look


def fidelity(weights: Path | None, device: torch.device) -> Extract:
    """The 2048 numbers of the Inception that FID is defined by, as torch-fidelity has it.

    weights  its file `weights-inception-2015-12-05-6726825d.pth`; None: torch-fidelity fetches it
    Raises InputError.
    """
    try:
        from torch_fidelity import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # RuntimeError: of a torchvision for another torch
        raise InputError("fidelity " + NEEDS.format("torch-fidelity", error)) from error
    place = None if weights is None else str(weights)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=place
        )
    except Exception as error:  # of files, of archives, of the network
        whose = place or "fetched by torch-fidelity"
        raise InputError(
            f"fidelity's weights, {whose}, cannot be had: {first_line(error)}; give its file as fidelity:FILE"
        ) from error
    network = network.eval().to(device)
    return lambda images: network(levels(images).to(device))[0]


def own(file: Path, name: str, device: torch.device) -> Extract:
    """The function of a name in a Python file, which is run. Raises InputError, also when it fails later."""
    if not file.is_file():
        raise InputError(f"features: {file} is not a file; give one that defines {name}")
    spec = importlib.util.spec_from_file_location(f"ldm_features_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    told(f"{file} cannot be run", spec.loader.exec_module, module)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"features: {file} has no function {name}; {nearest(name, known)}")
    return lambda images: told(
        f"{file}:{name} fails on images {list(images.shape)}", function, images.to(device)
    )


def told(what: str, function: Callable[..., Any], argument: Any) -> Any:
    """What a caller's function gives back; what it raises is told as an InputError."""
    try:
        return function(argument)
    except Exception as error:
        raise InputError(f"features: {what}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """An error's kind, and the first line of what it says."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def levels(images: Tensor) -> Tensor:
    """[b 3 H W] in [-1, 1] -> uint8, 0..255: the very levels that were read."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
