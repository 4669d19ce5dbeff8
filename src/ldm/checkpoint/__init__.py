"""Models in files: what they are, loading and saving them exactly."""

from ldm.checkpoint.components import load_text_encoder, load_unet, load_vae
from ldm.checkpoint.inversion import Embedding, read_embedding, write_embedding
from ldm.checkpoint.load import load_model
from ldm.checkpoint.lora import read_lora
from ldm.checkpoint.plan import inspect
from ldm.checkpoint.report import Report
from ldm.checkpoint.save import save

__all__ = [
    "Embedding", "Report", "inspect", "load_model", "load_text_encoder", "load_unet", "load_vae",
    "read_embedding", "read_lora", "save", "write_embedding",
]  # fmt: skip
