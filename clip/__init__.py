"""CLIP with token pruning: `load`, `tokenize`, `available_models`, as CLIP's users know them."""

from clip.clip import load
from clip.download import available_models
from clip.tokenizer import tokenize

__all__ = ["available_models", "load", "tokenize"]
