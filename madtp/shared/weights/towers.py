"""A vision transformer and a BERT in transformers' form, turned into the towers that BLIP's tasks start from.

What our towers do not have is folded into the weights, in double precision: layer scale into the projection before it,
the mean and standard deviation of the pixels into the patch embedding, the first token type into the positions.

Shapes: D width, P pixels on a side of a patch, G patches on a side, V words, L positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from madtp.method.errors import UserError
from madtp.shared.files import read_json
from madtp.shared.weights import transformers_names as names
from madtp.shared.weights.architecture import vit_sizes
from madtp.shared.weights.folders import PREPROCESSOR, read_weights
from madtp.shared.weights.transformers_sizes import IMAGE, TEXT, read_sizes, refuse, side

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What a file may hold besides the tower: heads, and what only other uses of it need.
BESIDE_IMAGE = ("pooler", "classifier", "decoder", "embeddings.mask_token")
BESIDE_TEXT = ("pooler", "classifier", "qa_outputs", "cls.seq_relationship", "cls.predictions.decoder")
PADDED = 128  # embeddings are padded up to a multiple of this at most


class Normalisation(NamedTuple):
    """What pixels between 0 and 1 are normalised with, for each color."""

    mean: Sequence[float]
    std: Sequence[float]


class TowerWeights(NamedTuple):
    """A tower of ours.

    Attributes:
        state: its weights by the names of BLIP's models.
        sizes: keys of a configuration that decide its architecture.
        told: one line about what was read and folded.
    """

    state: dict[str, Tensor]
    sizes: dict
    told: str


def image_tower(folder: str | Path, taken: Normalisation, trained: Normalisation | None = None) -> TowerWeights:
    """The image tower of a folder, which then takes pixels that are normalised as BLIP's are.

    Args:
        folder: of a Dinov2Model or a ViTModel, or of a model with a head on one.
        taken: the normalisation of the pixels that it is going to be given.
        trained: the one that it was trained with, instead of what its preprocessor_config.json says.

    Raises:
        UserError: the folder is incomplete, or the tower has a part that ours cannot have.
    """
    config = read_sizes(folder, IMAGE)
    patch, size = side(config.patch_size, folder), side(config.image_size, folder)
    swiglu = getattr(config, "use_swiglu_ffn", False)
    refuse(swiglu, folder, "use_swiglu_ffn true, a gated MLP", "DINOv2's small, base and large have plain ones")
    refuse(config.hidden_act != "gelu", folder, f"hidden_act {config.hidden_act}", "ours is gelu")
    refuse(config.num_channels != 3, folder, f"num_channels {config.num_channels}", "ours takes three colors")
    weights = names.without_prefix(read_weights(folder), f"{config.model_type}.")
    state, unknown = names.to_ours(weights, names.IMAGE_TOWER)
    _refuse_unknown(unknown, BESIDE_IMAGE, folder)
    trained = trained or stated_normalisation(folder, config.model_type)
    if not all(map(math.isfinite, (*trained.mean, *trained.std))) or min(trained.std) <= 0:
        raise UserError(f"{folder}: mean {trained.mean} and std {trained.std} of its pixels, expected std above 0")
    try:
        fold_normalisation(state, taken, trained)
        scaled = fold_layer_scale(state)
        hidden = len(state["blocks.0.mlp.fc1.bias"])
    except KeyError as error:
        raise UserError(f"{folder}: {error.args[0]} is missing; fetch its weights again") from error
    width, grid = config.hidden_size, size // patch
    if not config.qkv_bias:
        state |= {f"blocks.{layer}.attn.qkv.bias": torch.zeros(3 * width) for layer in range(config.num_hidden_layers)}
    depth, num_heads = config.num_hidden_layers, config.num_attention_heads
    sizes = vit_sizes(width, depth, num_heads, patch, hidden, config.layer_norm_eps)
    mean, std = (" ".join(f"{value:g}" for value in values) for values in trained)
    told = f"{folder}: {IMAGE[config.model_type]}, {depth} layers, width {width}, patches of {patch} "
    told += f"pixels, {grid} x {grid} positions; folded: mean {mean} and std {std}{', layer scale' * bool(scaled)}"
    state = {f"visual_encoder.{name}": value.float() for name, value in state.items()}
    return TowerWeights(state, {"vit": sizes, "image_size": size}, told)


def text_tower(folder: str | Path, tokens: int, first: int) -> TowerWeights:
    """The text tower of a folder, with two more words at the end of its vocabulary: [DEC] and [ENC].

    Args:
        folder: of a BertModel, or of a model with a head on one. A head that predicts words comes along.
        tokens: V of the tokenizer, the two included.
        first: number of [CLS], whose embedding the two begin with.

    Raises:
        UserError: the folder is incomplete, the tower has a part that ours cannot have, or another vocabulary.
    """
    config = read_sizes(folder, TEXT)
    refuse(config.hidden_act != "gelu", folder, f"hidden_act {config.hidden_act}", "ours is gelu")
    positions = getattr(config, "position_embedding_type", "absolute")
    refuse(positions != "absolute", folder, f"position_embedding_type {positions}", "ours has absolute ones")
    weights = names.modern(names.without_prefix(read_weights(folder), "bert."))
    head, rest = names.to_ours(weights, names.PREDICTION_HEAD)
    state, unknown = names.to_ours({name: weights[name] for name in rest}, names.TEXT_TOWER)
    _refuse_unknown(unknown, BESIDE_TEXT, folder)
    state.pop("embeddings.position_ids", None)
    try:
        fold_token_type(state)
        words = state["embeddings.word_embeddings.weight"]
    except KeyError as error:
        raise UserError(f"{folder}: {error.args[0]} is missing; fetch its weights again") from error
    _check_vocabulary(len(words), tokens - 2, folder)
    state["embeddings.word_embeddings.weight"] = with_two_more(words, tokens, first)
    state = {f"text_encoder.{name}": value.float() for name, value in state.items()}
    for name in names.outside(head, ("cls.predictions.decoder",)):  # which are the word embeddings and the bias again
        value = with_two_more(head[name], tokens, first) if name == "cls.predictions.bias" else head[name]
        state[f"text_decoder.{name}"] = value.float()
    vocabulary = len(state["text_encoder.embeddings.word_embeddings.weight"])
    told = f"{folder}: BertModel, {config.num_hidden_layers} layers, width {config.hidden_size}, {vocabulary} words "
    told += f"with [DEC] and [ENC]; folded: the first token type{'; with its prediction head' * bool(head)}"
    return TowerWeights(state, {"med_config": bert_sizes(config) | {"vocab_size": vocabulary}}, told)


def bert_sizes(config: PretrainedConfig) -> dict:
    """What `med_config` says of a BERT."""
    sizes = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
    others = "layer_norm_eps hidden_dropout_prob attention_probs_dropout_prob initializer_range pad_token_id"
    return {name: getattr(config, name) for name in f"{sizes} {others}".split()}


def stated_normalisation(folder: str | Path, model_type: str) -> Normalisation:
    """What the folder's preprocessor_config.json says, or ImageNet's for a DINOv2, whose are all alike.

    Raises:
        UserError: it says nothing, and the tower is no DINOv2.
    """
    path = Path(folder) / PREPROCESSOR
    if path.is_file():
        stated = read_json(path, "--mean and --std say what the tower was trained with")
        stated = stated if isinstance(stated, dict) else {}
        if stated.get("do_normalize") is False:
            return Normalisation((0, 0, 0), (1, 1, 1))
        pair = stated.get("image_mean"), stated.get("image_std")
        if all(isinstance(values, list) and len(values) == 3 and all(map(is_number, values)) for values in pair):
            return Normalisation(*pair)
    if model_type == "dinov2":
        return Normalisation(*IMAGENET)
    raise UserError(f"{folder}: no {PREPROCESSOR} says its image_mean and image_std; give them by --mean and --std")


def is_number(value: object) -> bool:
    """Whether JSON held a number there."""
    return type(value) in (int, float)


def fold_normalisation(state: dict[str, Tensor], taken: Normalisation, trained: Normalisation) -> None:
    """Lets a patch embedding that was trained with one normalisation take pixels of another.

    With y = (pixel - m) / s of what is taken, (pixel - m') / s' = y s / s' + (m - m') / s'. A patch embedding has no
    padding, so that the second summand is the same for all patches and goes into the bias.
    """
    weight = state["patch_embed.proj.weight"].double()  # [D, 3, P, P]
    (mean, std), (own_mean, own_std) = ([torch.tensor(values).double() for values in pair] for pair in (taken, trained))
    moved = torch.einsum("dcpq,c->d", weight, (mean - own_mean) / own_std)
    state["patch_embed.proj.bias"] = (state["patch_embed.proj.bias"].double() + moved).float()
    state["patch_embed.proj.weight"] = (weight * (std / own_std)[:, None, None]).float()


def fold_layer_scale(state: dict[str, Tensor]) -> list[str]:
    """Multiplies what a layer's projections give by its layer scale, and returns the entries that are gone by that."""
    scales = [name for name in state if name.endswith(".scale")]
    for name in scales:
        projection, scale = name.removesuffix(".scale"), state.pop(name).double()
        for part, factor in (("weight", scale[:, None]), ("bias", scale)):
            state[f"{projection}.{part}"] = (state[f"{projection}.{part}"].double() * factor).float()
    return scales


def fold_token_type(state: dict[str, Tensor]) -> None:
    """Adds the embedding of the first token type, which all our tokens are of, to that of every position [L, D]."""
    kind = state.pop("embeddings.token_type_embeddings.weight")[0].double()
    positions = state["embeddings.position_embeddings.weight"].double()
    state["embeddings.position_embeddings.weight"] = (positions + kind).float()


def with_two_more(words: Tensor, tokens: int, first: int) -> Tensor:
    """A table [V, ...] of words in which the last two of `tokens` are as the word `first`."""
    table = words.new_zeros(max(len(words), tokens), *words.shape[1:])
    table[: len(words)] = words
    table[tokens - 2 : tokens] = words[first]
    return table


def _check_vocabulary(words: int, tokens: int, folder: str | Path) -> None:
    padded = words % 8 == 0 and tokens <= words < tokens + PADDED
    if words != tokens and not padded:
        raise UserError(
            f"{folder} knows {words} words and the tokenizer {tokens}, so they are not of one model; "
            "--tokenizer names the folder that it was trained with"
        )


def _refuse_unknown(unknown: list[str], beside: tuple[str, ...], folder: str | Path) -> None:
    if others := names.outside(unknown, beside):
        raise UserError(f"{folder}: {others[0]} has no place in our tower ({len(others)} such); choose another tower")
