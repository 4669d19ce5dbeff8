"""The `modelspec.*` texts of a safetensors file (Stability AI's ModelSpec 1.0): what they say, and ours."""

from collections.abc import Mapping

from ldm.family import Family
from ldm.schedulers import V

ARCHITECTURES = {  # of a family; those that are left out have none
    "sd1": "stable-diffusion-v1",
    "sd1-inpaint": "stable-diffusion-v1/inpainting",
    "sd1-pix2pix": "stable-diffusion-v1/instruct-pix2pix",
    "sd2": "stable-diffusion-v2-512",
    "sd2-v": "stable-diffusion-v2-768-v",
    "sd2-inpaint": "stable-diffusion-v2-inpainting",
    "sd2-depth": "stable-diffusion-v2-depth",
    "sd-turbo": "stable-diffusion-v2-turbo",
    "sd-x4-upscaler": "stable-diffusion-x4-upscaler",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-inpaint": "stable-diffusion-xl-v1-inpainting",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
    "sdxl-turbo": "stable-diffusion-xl-turbo",
}
KIN = {"sd2-v": ("sd2", "sd2-v"), "sdxl": ("sdxl", "sdxl-turbo")}  # what no tensor tells apart


def decide(family: str, texts: Mapping[str, str]) -> tuple[str, str] | None:
    """Which of several families with the same tensors a file says it is, and the text that says so."""
    kin = KIN.get(family, ())
    for name in kin:
        if texts.get("modelspec.architecture") == ARCHITECTURES[name]:
            return name, f"modelspec.architecture is {ARCHITECTURES[name]!r}"
    said = texts.get("modelspec.prediction_type", "").lower()
    if family == "sd2-v" and said in ("epsilon", "v"):
        return {"epsilon": "sd2", "v": "sd2-v"}[said], f"modelspec.prediction_type is {said!r}"
    if family == "sdxl" and "turbo" in (title := texts.get("modelspec.title", "")).lower():
        return "sdxl-turbo", f"modelspec.title is {title!r}"
    return None


def describe(family: Family) -> dict[str, str]:
    """The texts for a file of a family."""
    architecture = ARCHITECTURES.get(family.name, f"latent-diffusion/{family.name}")
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/CompVis/latent-diffusion",
        "modelspec.title": architecture,
        "modelspec.resolution": f"{family.size}x{family.size}",
        "modelspec.prediction_type": "v" if family.prediction is V else "epsilon",
    }
