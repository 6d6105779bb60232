"""Models small enough to be built in every test; the three widths differ, so that no two can be mistaken."""

import torch
from torch import nn

from tests.golden.fill import fill, seeded
from tests.models.test_golden import GOLDEN

VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 16}
BERT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "vocab_size": 202,
    "layer_norm_eps": 1e-12,
}
SIZES = {"image_size": 64, "vit": VIT, "med_config": BERT}
CONFIG = {"sd_num": 6, "sd_dim": 40, "tokenizer": str(GOLDEN / "tokenizer"), "drop_path": 0.0}
STATEMENTS = [
    "the picture of two cat",
    "the red circle is left of the blue square ?",
    "a dog and a man in a green car driving down the road",
]


def build(builder, sizes: dict | None = None, **config) -> nn.Module:
    """A model with weights that depend on names and shapes alone, in float64 and without dropout."""
    return fill(builder(**SIZES | (sizes or {}), config=CONFIG | config)).eval().double()


def images(number: int, seed: int = 1, size: int = 64) -> torch.Tensor:
    """Noise [number, 3, size, size]."""
    return seeded(seed, number, 3, size, size).double()
