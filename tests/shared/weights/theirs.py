"""Small models of the transformers library with every weight drawn, as the folders in which people get them."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, BlipConfig, CLIPConfig, Dinov2Config, ViTConfig
from transformers.utils import logging

from tests.golden.fill import fill
from tests.models.test_golden import GOLDEN

logging.disable_progress_bar()

needs_5 = pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) < 5, reason="its models were others before version 5"
)
VISION = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14, "image_size": 70}
TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "vocab_size": 200,
    "layer_norm_eps": 1e-3,
}


def drawn(kind: type, config: transformers.PretrainedConfig) -> torch.nn.Module:
    """A model of a class, its weights far from those it begins with."""
    return fill(kind(config)).eval()


def dinov2(**changes) -> transformers.Dinov2Model:
    """A vision transformer with layer scale."""
    return drawn(transformers.Dinov2Model, Dinov2Config(**VISION | {"layer_norm_eps": 1e-3} | changes))


def vit(**changes) -> transformers.ViTModel:
    """A plain vision transformer, whose MLP is no four times as wide."""
    sizes = VISION | {"patch_size": 16, "image_size": 64, "intermediate_size": 80, "layer_norm_eps": 1e-4}
    return drawn(transformers.ViTModel, ViTConfig(**sizes | changes))


def bert(kind: type = transformers.BertModel, **changes) -> torch.nn.Module:
    """A BERT over the golden tokenizer's words."""
    return drawn(kind, BertConfig(**TEXT | changes))


def saved(model: torch.nn.Module, folder: Path, vocabulary: bool = False, **options) -> Path:
    """The folder of a model, with its vocabulary if asked for."""
    model.save_pretrained(folder, **options)
    if vocabulary:
        (folder / "vocab.txt").write_text((GOLDEN / "tokenizer" / "vocab.txt").read_text())
    return folder


WORDS, DEC, SEP = 202, 200, 23  # of the golden tokenizer with [DEC] and [ENC]
BLIP_TEXT = TEXT | {"vocab_size": WORDS, "bos_token_id": DEC, "sep_token_id": SEP, "pad_token_id": 0}
BLIP_VISION = VISION | {"patch_size": 16, "image_size": 64, "intermediate_size": 96, "layer_norm_eps": 1e-4}
CLIP_TEXT = TEXT | {
    "vocab_size": 49408,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "num_attention_heads": 3,
    "hidden_size": 60,
}
CLIP_VISION = BLIP_VISION | {"num_attention_heads": 4}


def blip(kind: type, vision: dict | None = None, text: dict | None = None, **changes) -> torch.nn.Module:
    """A BLIP of a class, its towers no wider than each other."""
    towers = {"vision_config": BLIP_VISION | (vision or {}), "text_config": BLIP_TEXT | (text or {})}
    return drawn(kind, BlipConfig(**towers, image_text_hidden_size=20, **changes))


def clip(vision: dict | None = None, text: dict | None = None, **both) -> transformers.CLIPModel:
    """A CLIP whose heads are 12 and 20 wide."""
    both = {"layer_norm_eps": 1e-4} | both
    towers = {"vision_config": CLIP_VISION | both | (vision or {}), "text_config": CLIP_TEXT | both | (text or {})}
    return drawn(transformers.CLIPModel, CLIPConfig(**towers, projection_dim=24))
