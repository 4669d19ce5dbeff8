"""ldm: latent diffusion from scratch. `ldm.load()` gives a model, `model("a red circle")` an image."""

from ldm import oracle
from ldm.attention import attention, attention_backend
from ldm.checkpoint import Report, inspect, load_text_encoder, load_unet, load_vae, save
from ldm.cleaning import denoise
from ldm.denoiser import Denoiser
from ldm.enlarging import hires, outpaint, upscale
from ldm.errors import CheckpointError, DeviceError, InputError, LdmError, NumericError
from ldm.families import families
from ldm.family import Family
from ldm.loading import load
from ldm.motion import animate
from ldm.noise import Brownian, Noise
from ldm.parameters import parameters
from ldm.pipeline import Pipeline
from ldm.previews import previewer
from ldm.prompts import tokens
from ldm.result import Result
from ldm.schedulers import EPS, X0, Level, Sampler, Schedule, V, sampler
from ldm.tasks import edit, interpolate, invert, vary
from ldm.watching import record_attention

__version__ = "0.1.0"

__all__ = [
    "EPS", "V", "X0", "Brownian", "CheckpointError", "Denoiser", "DeviceError", "Family", "InputError",
    "LdmError", "Level", "Noise", "NumericError", "Pipeline", "Report", "Result", "Sampler", "Schedule",
    "animate", "attention", "attention_backend", "denoise", "edit", "families", "hires", "inspect",
    "interpolate", "invert", "load", "load_text_encoder", "load_unet", "load_vae", "oracle", "outpaint",
    "parameters", "previewer", "record_attention", "sampler", "save", "tokens", "upscale", "vary",
]  # fmt: skip
