"""BLIP's mixture of encoder and decoder: a BERT with one cross-attention per layer, and a language model on top.

Shapes: B batch, L text tokens, S image tokens, D width, V vocabulary.
"""

from typing import Any

from torch import Tensor, nn
from transformers import BertConfig

from madtp.method.layout import Sequences
from madtp.method.precision import at_least_single
from models.bert import Attention, BertModel, KeysValues, Output, TextOutput


class CrossAttention(nn.Module):
    """Attention from text to another sequence, with its output."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = Attention(config, config.encoder_width)
        self.output = Output(config, config.hidden_size)

    def keys_values(self, states: Sequences) -> KeysValues:
        """Projects a sequence [B, S, encoder_width]."""
        return self.self.keys_values(states)

    def forward(self, hidden: Sequences, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        return self.output(self.self.across(hidden, keys_values, mask), hidden.tokens)


def med_encoder(config: BertConfig, tower: str = "text") -> BertModel:
    """BERT for text alone or, given the states of an image, for both modalities."""
    return BertModel(config, lambda index: CrossAttention(config), tower)


class Transform(nn.Module):
    """The language-model head's own layer before the vocabulary."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.GELU()
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(x)))


class Predictions(nn.Module):
    """Logits over the vocabulary; the output matrix is the word embedding's."""

    def __init__(self, config: BertConfig, word_embeddings: nn.Embedding):
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = word_embeddings.weight
        self.bias = self.decoder.bias  # Fidelity: released checkpoints list the one bias under two names.

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


class Decoder(nn.Module):
    """Causal language model over text that attends to another sequence; it never prunes."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.bert = med_encoder(config, tower="decoder")
        self.cls = nn.ModuleDict({"predictions": Predictions(config, self.bert.embeddings.word_embeddings)})

    def forward(self, input_ids: Tensor, mask: Tensor, **context: Any) -> tuple[Tensor, TextOutput]:
        """Logits [B, L, V] of the next token at every position, and the decoder's own output.

        `context` are the keyword arguments of `BertModel.forward`.
        """
        output = self.bert(input_ids, mask, causal=True, **context)
        return self.cls["predictions"](output.states), output


LABEL_SMOOTHING = 0.1  # BLIP smooths in training and in ranking answers alike


def smoothed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of several targets [..., T] of the same logits [..., V], labels smoothed: [..., T]."""
    log_probabilities = at_least_single(logits).log_softmax(dim=-1)
    likelihood = log_probabilities.gather(-1, targets)
    return (LABEL_SMOOTHING - 1) * likelihood - LABEL_SMOOTHING * log_probabilities.mean(dim=-1, keepdim=True)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every token, [B, L], 0 where the target is -100: logits [B, L, V], targets [B, L]."""
    losses = smoothed_cross_entropy(logits, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return losses.masked_fill(targets < 0, 0)


def next_tokens(input_ids: Tensor, mask: Tensor) -> Tensor:
    """What follows each token but the last, -100 where that is padding: [B, L] -> [B, L - 1]."""
    return input_ids[:, 1:].masked_fill(~mask[:, 1:].bool(), -100)
