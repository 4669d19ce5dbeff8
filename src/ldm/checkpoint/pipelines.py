"""Which family a diffusers folder is of, by its JSON files."""

from typing import Any

from ldm.checkpoint.detect import Finding
from ldm.checkpoint.fields import Json, text

CLASSES = {  # of pipelines, to the family name of their usual weights
    "StableDiffusionPipeline": "sd1",
    "StableDiffusionImg2ImgPipeline": "sd1",
    "StableDiffusionInpaintPipeline": "sd1-inpaint",
    "StableDiffusionInstructPix2PixPipeline": "sd1-pix2pix",
    "StableDiffusionUpscalePipeline": "sd-x4-upscaler",
    "StableDiffusionDepth2ImgPipeline": "sd2-depth",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl-inpaint",
    "StableDiffusionXLImg2ImgPipeline": "sdxl-refiner",
    "LDMTextToImagePipeline": "ldm-text2img",
    "LDMPipeline": "ldm-celeba256",
    "LDMSuperResolutionPipeline": "ldm-sr",
}


# A family, and what the UNet sees beside the latent or predicts -> the family that is.
BY_INPUTS: dict[tuple[Any, Any], str] = {
    ("sd1", 9): "sd1-inpaint", ("sd1", 8): "sd1-pix2pix", ("sd2", 9): "sd2-inpaint", ("sd2", 5): "sd2-depth",
    ("sdxl", 9): "sdxl-inpaint",
}  # fmt: skip


def detect(index: Json, unet: Json, scheduler: Json) -> Finding:
    """The family of a folder, by its configs. Raises CheckpointError for one that is damaged."""
    if own := text("model_index.json", index, "_ldm_family", ""):
        return Finding(own, [f"model_index.json has _ldm_family {own!r}"])
    name = index.get("_class_name")
    family = CLASSES.get(name) if isinstance(name, str) else None
    reasons = [f"model_index.json has _class_name {name!r}"]
    if family in ("sd1", "sd1-inpaint") and unet.get("use_linear_projection"):
        family = family.replace("sd1", "sd2")
        reasons.append("unet/config.json has use_linear_projection")
    inputs, outputs = unet.get("in_channels"), unet.get("out_channels", 4)
    if (family, inputs) in BY_INPUTS and outputs == 4:
        family = BY_INPUTS[family, inputs]
        reasons.append(f"unet/config.json has {inputs} in_channels")
    if family == "sdxl-refiner" and not index.get("requires_aesthetics_score"):
        family = "sdxl"
    trailing = scheduler.get("timestep_spacing") == "trailing"
    if family in ("sd2", "sdxl") and trailing and str(scheduler.get("_class_name")).startswith("Euler"):
        family = {"sd2": "sd-turbo", "sdxl": "sdxl-turbo"}[family]
        reasons.append("scheduler_config.json has timestep_spacing 'trailing', as the turbos have")
    if family == "sd2" and scheduler.get("prediction_type") == "v_prediction":
        family = "sd2-v"
        reasons.append("scheduler_config.json has prediction_type 'v_prediction'")
    return Finding(family, reasons)
