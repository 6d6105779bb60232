"""Small models of the transformers library with every weight drawn, as the folders in which people get them."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertConfig, Dinov2Config, ViTConfig
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
