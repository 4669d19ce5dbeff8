"""Text: prompts to ids to hidden states."""

from ldm.clip.bert import BERT
from ldm.clip.classes import ClassEmbedder
from ldm.clip.config import BERTConfig, ClassConfig, CLIPConfig
from ldm.clip.text import TextEncoder
from ldm.clip.tokenizer import Tokenizer
from ldm.clip.wordpiece import WordPiece
from ldm.clip.words import Word, Words

__all__ = [
    "BERT",
    "BERTConfig",
    "CLIPConfig",
    "ClassConfig",
    "ClassEmbedder",
    "TextEncoder",
    "Tokenizer",
    "Word",
    "WordPiece",
    "Words",
]
