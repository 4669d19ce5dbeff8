"""Which family a set of tensor names belongs to, and why."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ldm.checkpoint.evidence import Shapes
from ldm.family import BESIDE


class Marker(NamedTuple):
    """The first marker of which some tensor's name matches decides."""

    pattern: str
    family: str | None  # None: not a whole model
    because: str


# In order of precedence: adapters may carry names of what they adapt, and SDXL has all of SD2's names.
ORIGINAL = (
    Marker(r".*[._]lora(_down|_up|_A|_B|_linear_layer\.\w+|\.down|\.up)(\.\w+)?\.weight", None,
           "a LoRA, which changes a model; pipe.load_lora takes it"),
    Marker(r".*\.(hada_w\d_[ab]|lokr_w\d(_[ab])?)", None, "a LyCORIS adapter, which is not supported"),
    Marker(r"(control_model|controlnet_\w+)\..*", None, "a ControlNet"),
    Marker(r"(image_proj|ip_adapter)\..*", None, "an IP-Adapter"),
    Marker(r"emb_params|string_to_param.*|clip_[lg]|<.*>", None,
           "a textual-inversion embedding; pipe.load_textual_inversion takes it"),
    Marker(r".*\.(absmax|quant_map|quant_state\..*|SCB|qweight|qzeros|scale_weight|weight_scale)", None,
           "a quantised model, whose weights are no longer exact"),
    Marker(r"conditioner\.embedders\.1\..*", "sdxl", "two text encoders under conditioner.embedders"),
    Marker(r"conditioner\.embedders\.0\.model\..*", "sd-turbo", "a single OpenCLIP, in sgm's names"),
    Marker(r"cond_stage_model\.model\..*", "sd2-v", "an OpenCLIP text encoder"),
    Marker(r"cond_stage_model\.transformer\.(token_emb|attn_layers)\..*", "ldm-text2img",
           "a BERT text encoder"),
    Marker(r"cond_stage_model\.transformer\.(text_model\.)?(embeddings|encoder|final_layer_norm)\..*", "sd1",
           "a CLIP text encoder under cond_stage_model.transformer"),
    Marker(r"cond_stage_model\.embedding\.weight", "ldm-cin256", "an embedding of classes"),
    Marker(r"model\.diffusion_model\..*\.qkv\.weight", "ldm-celeba256", "no text, and plain attention"),
    Marker(r"model\.diffusion_model\..*", None, "a UNet without a text encoder"),
    Marker(r"(quant_conv|encoder\.conv_in|encoder\.down\.).*", None, "an autoencoder alone"),
    Marker(r"(text_model|embeddings|encoder\.layers)\..*", None, "a text encoder alone"),
    Marker(r"(down_blocks|conv_in|input_blocks)\..*", None, "a UNet alone"),
)  # fmt: skip

# A family, and what the UNet sees beside the latent -> the family that is.
BY_INPUTS = {
    ("sd1", "inpaint"): "sd1-inpaint",
    ("sd1", "edit"): "sd1-pix2pix",
    ("sd2-v", "inpaint"): "sd2-inpaint",
    ("sd2-v", "depth"): "sd2-depth",
    ("sd2-v", "upscale"): "sd-x4-upscaler",
    ("sdxl", "inpaint"): "sdxl-inpaint",
    ("ldm-celeba256", "upscale"): "ldm-sr",
    ("ldm-celeba256", "edit"): "ldm-sr",  # as many channels, where a latent has three
    ("ldm-celeba256", "inpaint"): "ldm-inpaint",
}
UNET = "model.diffusion_model."
REFINER = rf"{re.escape(UNET)}label_emb\.0\..*"  # with a single OpenCLIP
FOURTH_LEVEL = r"first_stage_model\.(encoder\.down|decoder\.up)\.3\..*"  # of ImageNet's autoencoders
STRIDED = rf"{re.escape(UNET)}input_blocks\.\d+\.0\.op\..*"  # a convolution that halves the size

GUESSES = {  # what names and shapes cannot tell, and how it is taken
    "sd2-v": "SD 2 may predict v (768 pixels) or eps (512); taken for v, else pass family='sd2'",
    "sdxl": "SDXL and SDXL-Turbo have the same tensors; taken for SDXL, else pass family='sdxl-turbo'",
    "scale_factor": "scale_factor is missing, which only the file can tell; latents are taken as they are",
}


class Finding(NamedTuple):
    """What a file is taken for."""

    family: str | None
    reasons: list[str]


def detect(shapes: Shapes) -> Finding:
    """The family of a single file by the first marker that matches, and by what else it has."""
    for marker in ORIGINAL:
        key = first_match(marker.pattern, shapes)
        if key is not None:
            reasons = [f"{marker.because}: {key}"]
            return Finding(None, reasons) if marker.family is None else refine(marker.family, reasons, shapes)
    return Finding(None, ["no tensor has a name of this lineage"])


def refine(family: str, reasons: list[str], shapes: Shapes) -> Finding:
    """Families with one kind of text encoder, told apart by the UNet's input, its labels and its sizes."""
    kind = beside(shapes)
    if (family, kind) in BY_INPUTS:
        inputs = shapes[f"{UNET}input_blocks.0.0.weight"][1]
        return Finding(BY_INPUTS[family, kind], [*reasons, f"the UNet has {inputs} input channels"])
    if family == "sd-turbo" and (key := first_match(REFINER, shapes)):
        return Finding("sdxl-refiner", [*reasons, f"the UNet hears a vector: {key}"])
    if family == "ldm-cin256" and (key := first_match(FOURTH_LEVEL, shapes)):
        return Finding("ldm-cin256-vq-f8", [*reasons, f"the autoencoder has four levels: {key}"])
    if family == "ldm-celeba256" and not first_match(STRIDED, shapes):
        return Finding("ldm-churches256", [*reasons, "residual blocks halve the size"])
    return Finding(family, reasons)


def beside(shapes: Shapes) -> str:
    """What the UNet of a file sees beside the latent, a name in `BESIDE`; "" where it cannot tell."""
    outputs = [shapes[key][0] for key in (f"{UNET}out.2.bias", f"{UNET}out.2.weight") if shapes.get(key)]
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
    if not outputs or len(first) != 4:
        return ""
    more, labels = first[1] - outputs[0], f"{UNET}label_emb.weight" in shapes
    kinds = [kind for kind, channels in BESIDE.items() if channels(outputs[0]) == more]
    return "upscale" if "upscale" in kinds and labels else kinds[0] if kinds else ""


def first_match(pattern: str, names: Iterable[str]) -> str | None:
    """The first name that matches as a whole."""
    matches = re.compile(pattern).fullmatch
    return next((name for name in names if matches(name)), None)
