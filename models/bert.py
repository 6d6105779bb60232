"""What BLIP's two BERTs share: post-norm layers that prune their tokens between self-attention and cross-attention.

Shapes: B batch, L tokens with the first one never pruned, D width, H heads, E = D / H, S tokens of the other sequence.
Cross-attention takes several rows per row of the other sequence: with B states and B * G hidden rows, rows
b * G ... b * G + G - 1 attend to states b, whose keys and values are then computed once (beams, answers, candidates).
Shapes are those of the rule `batch`; by the rule `sample` tokens may lie otherwise, as their layout says.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertConfig

from madtp.cost.flops import TextShape
from madtp.cost.trace import Trace
from madtp.method.alignment import QueryModel
from madtp.method.attention import AttentionScores, attend
from madtp.method.errors import LARGEST, UserError, excerpt
from madtp.method.keep import Keep, for_texts, keep_batch
from madtp.method.layout import RECTANGLE, Rectangle, Sequences
from madtp.method.packed import Packed
from madtp.method.pruning import Kept
from madtp.shared.files import read_json
from madtp.shared.layers import Guidance, run_layers

WAY_OUT = "configs/med_config.json shows how it should be"
SIZES = "hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size max_position_embeddings"
RANGES = dict.fromkeys(SIZES.split(), (1, LARGEST))
SMALL = "hidden_dropout_prob attention_probs_dropout_prob layer_norm_eps initializer_range"
RANGES |= dict.fromkeys(SMALL.split(), (0.0, 1.0))


class KeysValues(NamedTuple):
    """Projected keys and values of a sequence, each [B, H, L, E], and how its tokens lie."""

    key: Tensor
    value: Tensor
    layout: Rectangle = RECTANGLE

    def reordered(self, rows: Tensor) -> "KeysValues":
        """Those of some rows."""
        return KeysValues(self.key[rows], self.value[rows])

    def repeated(self, times: int) -> "KeysValues":
        """Every row so many times."""
        return KeysValues(*(part.repeat_interleave(times, dim=0) for part in self[:2]))


class TextOutput(NamedTuple):
    """What a BERT returns.

    Attributes:
        states: [B, L', D], the first token first, kept tokens in their order, merged token last.
        mask: [B, L'] boolean, True where the token is not padding; None where there is none.
        aligned: [B, K, C], summed over the layers, or None.
        past: per layer the keys and values of self-attention, for decoding step by step; None where pruning is on.
        layout: how the states lie.
    """

    states: Tensor
    mask: Tensor | None
    aligned: Tensor | None
    past: list[KeysValues] | None
    layout: Rectangle = RECTANGLE

    @property
    def first(self) -> Tensor:
        """The states of the first tokens, [B, D]."""
        return self.layout.first(self.states)

    @property
    def sequences(self) -> Sequences:
        """The states with their layout, to be attended to."""
        return Sequences(self.states, self.layout)


def read_config(med_config: str | Path | dict, **overrides: Any) -> BertConfig:
    """BERT sizes from a JSON file or a dict; `overrides` come from the model that is being built.

    A file may be any BERT's, a dict is of a configuration and has no other keys than there are.

    Raises:
        UserError: no such file, no sizes in it, or sizes that do not fit each other.
    """
    if isinstance(med_config, dict):
        where, values = "med_config", med_config
        known = {*BertConfig().to_dict(), "encoder_width", "add_cross_attention"}
        if unknown := [name for name in values if name not in known]:
            raise UserError(
                f"{where}: unknown key {excerpt(unknown[0])}; configs/med_config.json shows those there are"
            )
    else:
        where, values = med_config, read_json(med_config, "med_config should name the JSON file of BERT's sizes")
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected BERT's sizes by name, found {excerpt(values)}")
    try:
        sizes = BertConfig(**{**values, **overrides})
    except Exception as error:  # versions of transformers differ in what they check, and in what they raise
        raise UserError(f"{where}: {error}; {WAY_OUT}") from error
    for name, (least, most) in RANGES.items():
        value = getattr(sizes, name)
        if not isinstance(value, int if isinstance(least, int) else int | float) or not least <= value <= most:
            expected = f"at least {least:g} and at most {most:g}"
            raise UserError(f"{where}: {name} is {excerpt(value)}, expected {expected}; {WAY_OUT}")
    if sizes.hidden_size % sizes.num_attention_heads:
        heads = f"num_attention_heads {sizes.num_attention_heads}"
        raise UserError(f"{where}: hidden_size {sizes.hidden_size} is no multiple of {heads}; choose another")
    for name, only in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if (value := getattr(sizes, name, only)) != only:
            raise UserError(f"{where}: {name} {value!r} is not supported; the text towers here have {only!r}")
    return sizes


class Embeddings(nn.Module):
    """Word and position embeddings."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Fidelity: released checkpoints carry the positions 0, 1, 2, ... as an entry of their own.
        self.register_buffer("position_ids", torch.arange(config.max_position_embeddings).unsqueeze(0))

    def forward(self, input_ids: Tensor, start: int = 0, words: Tensor | None = None) -> Tensor:
        end, most = start + input_ids.shape[1], self.position_ids.shape[1]
        if end > most:
            raise UserError(f"a text has {end} tokens, max_position_embeddings of med_config allows {most}; raise it")
        positions = self.position_ids[:, start:end]
        words = self.word_embeddings(input_ids) if words is None else words
        return self.dropout(self.LayerNorm(words + self.position_embeddings(positions)))


class Attention(nn.Module):
    """Queries of one sequence against the keys and values of the same or another one."""

    def __init__(self, config: BertConfig, states_width: int):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(states_width, config.hidden_size)
        self.value = nn.Linear(states_width, config.hidden_size)

    def keys_values(self, states: Tensor | Sequences) -> KeysValues:
        """Projects sequences [B, S, states_width] that are to be attended to."""
        tokens, layout = Sequences.of(states)
        return KeysValues(self._split_heads(self.key(tokens)), self._split_heads(self.value(tokens)), layout)

    def forward(
        self, hidden: Sequences, keys_values: KeysValues, mask: Tensor | None, causal: bool, scores: bool
    ) -> tuple[Tensor, AttentionScores | None]:
        """Attention to the tokens themselves, `mask` [B, L]."""
        query, (key, value, _) = self._split_heads(self.query(hidden.tokens)), keys_values  # [B, H, L, E]
        output, attention_scores = hidden.layout.attend(query, key, value, mask, causal, scores, self._dropout)
        return output.transpose(1, 2).flatten(2), attention_scores

    def across(self, hidden: Sequences, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """Attention to another sequence, `mask` [B, S]."""
        query, (key, value, layout) = self.query(hidden.tokens), keys_values
        if isinstance(layout, Packed):
            query = self._split_heads(query.view(1, -1, query.shape[-1]))  # [1, H, T, E]
            output = layout.across(query, key, value, hidden.layout.segment_lengths(hidden.tokens))
        else:
            query = self._split_heads(query.view(len(key), -1, query.shape[-1]))  # [B, H, G * L, E]
            output, _ = attend(query, key, value, layout.seen_from_outside(mask, query.dtype), dropout=self._dropout)
        return output.transpose(1, 2).reshape(hidden.tokens.shape)

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, L, E]


class Output(nn.Module):
    """Projection back to the width, residual connection and LayerNorm."""

    def __init__(self, config: BertConfig, width: int):
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class SelfAttention(nn.Module):
    """Self-attention with its output, able to continue from earlier keys and values."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = Attention(config, config.hidden_size)
        self.output = Output(config, config.hidden_size)

    def forward(
        self, hidden: Sequences, mask: Tensor | None, causal: bool, scores: bool, past: KeysValues | None
    ) -> tuple[Tensor, AttentionScores | None, KeysValues]:
        keys_values = self.self.keys_values(hidden)
        if past is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(past[:2], keys_values[:2], strict=True))
            keys_values = KeysValues(key, value)
        attended, attention_scores = self.self(hidden, keys_values, mask, causal, scores)
        return self.output(attended, hidden.tokens), attention_scores, keys_values


class Intermediate(nn.Module):
    """First half of the feed-forward network."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class Layer(nn.Module):
    """Attend, prune, attend to the other modality, feed forward.

    Args:
        config: BERT sizes; `sd_dim` is the width of the learnable tokens.
        cross_attention: the module that attends to the other sequence, or None. It projects that sequence by
            `keys_values(states)` and is called with `(hidden, keys_values, mask)`.
    """

    def __init__(self, config: BertConfig, cross_attention: nn.Module | None):
        super().__init__()
        self.attention = SelfAttention(config)
        self.query_model = QueryModel(config.hidden_size, config.sd_dim)
        self.crossattention = cross_attention
        self.intermediate = Intermediate(config)
        self.output = Output(config, config.intermediate_size)

    def forward(
        self,
        hidden: Tensor,
        layout: Rectangle,
        guidance: Guidance,
        mask: Tensor | None,
        causal: bool,
        states: tuple[Any, Tensor | None] | None,
        past: KeysValues | None,
    ) -> tuple[Tensor, Rectangle, Tensor | None, Kept | None, KeysValues]:
        """One layer; `states` is None or (keys and values, their mask), `mask` [B, L] covers the past too."""
        alignment, aligned = self.query_model(hidden, layout, *guidance)
        hidden, scores, present = self.attention(Sequences(hidden, layout), mask, causal, guidance.prunes, past)
        hidden, layout, kept = layout.prune(hidden, scores, alignment, guidance.temperature)
        if states is not None:
            hidden = self.crossattention(Sequences(hidden, layout), *states)
        return self.output(self.intermediate(hidden), hidden), layout, aligned, kept, present


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: BertConfig, cross_attention: Callable[[int], nn.Module | None]):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, cross_attention(index)) for index in range(config.num_hidden_layers))
        self.checkpointed_layers = getattr(config, "checkpointed_layers", 0)


class BertModel(nn.Module):
    """BERT that encodes text alone, text over another modality, or decodes causally.

    Args:
        config: BERT sizes; see `read_config`. The last `checkpointed_layers`, if it has this entry, are recomputed in
            the backward pass to save memory.
        cross_attention: makes the cross-attention of a layer from its index.
        tower: name under which a trace lists the layers.
    """

    def __init__(self, config: BertConfig, cross_attention: Callable[[int], nn.Module | None], tower: str = "text"):
        super().__init__()
        self.shape = TextShape(
            config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.encoder_width,
            config.vocab_size, config.sd_dim,
        )  # fmt: skip
        self.tower = tower
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, cross_attention)
        self.apply(lambda module: _initialise(module, config.initializer_range))

    def cross_keys_values(self, states: Any) -> list:
        """Keys and values of the other sequence for every layer, to be computed once and used many times."""
        return [layer.crossattention.keys_values(states) for layer in self.encoder.layer]

    def forward(
        self,
        input_ids: Tensor,
        mask: Tensor,
        states: Any = None,
        states_mask: Tensor | None = None,
        keys_values: Sequence | None = None,
        causal: bool = False,
        space_dict: Tensor | None = None,
        temperature: float = 0.0,
        align: bool = False,
        past: Sequence[KeysValues] | None = None,
        trace: Trace | None = None,
        keep: Keep = keep_batch,
        fixed_length: bool = False,
        words: Tensor | None = None,
    ) -> TextOutput:
        """Runs the layers.

        Args:
            input_ids: [B * G, L] token ids.
            mask: [B * G, L] (with `past`: [B * G, L_past + L]), nonzero where the token is not padding.
            states: sequences to attend to, [B, S, width] (twin encoders: a pair of them); None is text alone.
            states_mask: [B, S], nonzero where the sequence may be attended to; None is everywhere.
            keys_values: `cross_keys_values(states)`, instead of `states`.
            causal: hide the future.
            space_dict: [K, C], the learnable tokens.
            temperature: pruning temperature; 0 is the dense model. The causal decoder is never pruned.
            align: whether the aligned feature of the similarity loss is wanted.
            past: keys and values of earlier tokens, from the last step's output.
            trace: where to write down what each layer did to its tokens.
            keep: the rule by which tokens are kept.
            fixed_length: texts are padded to one length whatever their company, so that padding is a text's own. By the
                rule `sample` other padding is left out; the rule `batch` treats it as tokens.
            words: [B * G, L, D], the word embeddings of the texts where they were looked up before.
        """
        start = 0 if past is None else past[0].key.shape[2]
        hidden, mask = self.embeddings(input_ids, start, words), mask.bool()
        keep, temperature = for_texts(keep, temperature)
        guidance = Guidance.by(space_dict, 0.0 if causal else temperature, align)
        keep = keep if guidance.prunes or align else keep_batch
        sequences = keep(hidden, None if fixed_length else mask, align)
        if sequences.layout.ragged and not fixed_length:
            mask = None  # no padding is left
        (hidden, layout), aligned, (mask,), presents = run_layers(
            self.encoder.layer,
            sequences,
            guidance,
            self.tower,
            trace,
            self.encoder.checkpointed_layers,
            along=(mask,),
            inputs=self._inputs(states, states_mask, keys_values, causal, past),
        )
        past = None if guidance.prunes else [present for (present,) in presents]
        return TextOutput(hidden, mask, aligned, past, layout)

    def _inputs(self, states, states_mask, keys_values, causal, past) -> Iterator[tuple]:
        """What each layer is given of its own; keys and values are made when its turn comes, since they are large."""
        states_mask = None if states_mask is None else states_mask.bool()
        for index, layer in enumerate(self.encoder.layer):
            cross = None
            if keys_values is not None:
                cross = keys_values[index]
            elif states is not None:
                cross = layer.crossattention.keys_values(states)
            yield causal, None if cross is None else (cross, states_mask), None if past is None else past[index]


def _initialise(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
