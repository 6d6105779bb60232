"""NLVR2's text encoder: one cross-attention per image in every layer.

Shapes: B batch, L text tokens, S image tokens, D width.
"""

import torch
from torch import Tensor, nn
from transformers import BertConfig

from madtp.method.layout import Sequences
from models.bert import Attention, BertModel, KeysValues

FIRST_MERGED_LAYER = 6  # earlier layers average the two images, later ones learn how to merge them


class TwinOutput(nn.Module):
    """Joins what was read from the two images, then residual connection and LayerNorm."""

    def __init__(self, config: BertConfig, merge: bool):
        super().__init__()
        width = config.hidden_size
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if merge else None
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, first: Tensor, second: Tensor, residual: Tensor) -> Tensor:
        first, second = self.dense0(first), self.dense1(second)
        if self.merge_layer is None:
            joined = (first + second) / 2
        else:
            joined = self.merge_layer(torch.cat([first, second], dim=-1))
        return self.LayerNorm(self.dropout(joined) + residual)


class TwinCrossAttention(nn.Module):
    """Two cross-attentions side by side, `self0` for the left image and `self1` for the right one."""

    def __init__(self, config: BertConfig, merge: bool):
        super().__init__()
        self.self0 = Attention(config, config.encoder_width)
        self.self1 = Attention(config, config.encoder_width)
        self.output = TwinOutput(config, merge)

    def keys_values(self, states: tuple[Sequences, Sequences]) -> tuple[KeysValues, KeysValues]:
        """Projects the tokens of both images, each [B, S, encoder_width]."""
        return self.self0.keys_values(states[0]), self.self1.keys_values(states[1])

    def forward(self, hidden: Sequences, keys_values: tuple[KeysValues, KeysValues], mask: Tensor | None) -> Tensor:
        first = self.self0.across(hidden, keys_values[0], mask)
        second = self.self1.across(hidden, keys_values[1], mask)
        return self.output(first, second, hidden.tokens)


def nlvr_encoder(config: BertConfig) -> BertModel:
    """BERT whose layers attend to two images."""
    return BertModel(config, lambda index: TwinCrossAttention(config, merge=index >= FIRST_MERGED_LAYER))
