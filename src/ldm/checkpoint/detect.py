"""Which family a set of tensor names belongs to, and why."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ldm.checkpoint.evidence import Shapes


class Marker(NamedTuple):
    """The first marker of which some tensor's name matches decides."""

    pattern: str
    family: str | None  # None: not a whole model
    because: str


# In order of precedence: adapters may carry names of what they adapt, and SDXL has all of SD2's names.
ORIGINAL = (
    Marker(r".*\.(lora_down|lora_up|lora_A|lora_B)\.weight", None, "a LoRA, which changes a model"),
    Marker(r"control_model\..*", None, "a ControlNet"),
    Marker(r"emb_params|string_to_param.*", None, "a textual-inversion embedding"),
    Marker(r"conditioner\.embedders\.1\..*", "sdxl", "two text encoders under conditioner.embedders"),
    Marker(r"conditioner\.embedders\.0\.model\..*", "sdxl-refiner or sd-turbo", "a single OpenCLIP"),
    Marker(r"cond_stage_model\.model\..*", "sd2", "an OpenCLIP text encoder"),
    Marker(r"cond_stage_model\.transformer\.token_emb\..*", "ldm-text2img", "a BERT text encoder"),
    Marker(r"cond_stage_model\.transformer\.(text_model\.)?(embeddings|encoder|final_layer_norm)\..*", "sd1",
           "a CLIP text encoder under cond_stage_model.transformer"),
    Marker(r"model\.diffusion_model\..*", "another LDM family, or a UNet", "no known text encoder"),
    Marker(r"(quant_conv|encoder\.conv_in|encoder\.down\.).*", None, "an autoencoder alone"),
    Marker(r"(text_model|embeddings|encoder\.layers)\..*", None, "a text encoder alone"),
    Marker(r"(down_blocks|conv_in|input_blocks)\..*", None, "a UNet alone"),
)  # fmt: skip

# Input channels of a UNet with CLIP-L that puts out 4 -> family.
SD1_INPUTS = {9: "sd1-inpaint", 8: "sd1-pix2pix"}
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
LAST = ("model.diffusion_model.out.2.bias", "model.diffusion_model.out.2.weight")


class Finding(NamedTuple):
    """What a file is taken for."""

    family: str | None
    reasons: list[str]


def detect(shapes: Shapes) -> Finding:
    """The family of a single file by the first marker that matches."""
    for marker in ORIGINAL:
        key = first_match(marker.pattern, shapes)
        if key is None:
            continue
        reasons = [f"{marker.because}: {key}"]
        four_out = any(shapes.get(key, ())[:1] == (4,) for key in LAST)  # else they may be a latent's own
        shape = shapes.get(FIRST, ())
        if marker.family == "sd1" and four_out and len(shape) == 4 and shape[1] in SD1_INPUTS:
            return Finding(SD1_INPUTS[shape[1]], [*reasons, f"{FIRST} has {shape[1]} input channels"])
        return Finding(marker.family, reasons)
    return Finding(None, ["no tensor has a name of this lineage"])


def first_match(pattern: str, names: Iterable[str]) -> str | None:
    """The first name that matches as a whole."""
    return next((name for name in names if re.fullmatch(pattern, name)), None)
