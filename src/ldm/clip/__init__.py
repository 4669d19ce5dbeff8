"""Text: prompts to ids to hidden states."""

from ldm.clip.config import CLIPConfig
from ldm.clip.text import TextEncoder
from ldm.clip.tokenizer import Tokenizer

__all__ = ["CLIPConfig", "TextEncoder", "Tokenizer"]
