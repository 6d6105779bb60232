"""What a forward pass costs, by formula from the shapes that ran.

Costs are multiply-accumulates as fvcore counts them: convolution, linear and matrix product at 1 per multiply-add,
LayerNorm at 5 per element, nothing else. The paper calls 10^9 of them a GFLOP, and so do we. Where a trace counts the
tokens of every sample of a batch apart, so do the formulas: the cost is then an array, one entry for each sample.
`python -m madtp flops` prints the dense cost of the paper's models.

Letters: L tokens that enter a layer (class token included), M tokens after pruning, S tokens of the other sequence,
D width, W width of the other sequence, K learnable tokens, C their width.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from madtp.cost.trace import LayerTrace, dense_layers
from madtp.method.rules import COVERAGE

GIGA = 1e9

Cost = float | np.ndarray


@dataclass(frozen=True)
class VisionShape:
    """Sizes of a vision transformer that decide its cost."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    mlp_ratio: float = 4.0
    sd_dim: int = 768

    @property
    def length(self) -> int:
        """Tokens that enter the first layer."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TowerShape:
    """Sizes of anybody's vision transformer that decide its cost.

    Attributes:
        width: D.
        hidden: of the feed-forward part, as wide as one of two matrices would be that cost the same.
        patch: multiply-accumulates of turning one patch into a token.
        prefix: tokens in front that are no patches.
        class_token: whether the first of them is a class token.
    """

    width: int
    hidden: float
    patch: int
    prefix: int = 1
    class_token: bool = True


@dataclass(frozen=True)
class TextShape:
    """Sizes of a BERT that decide its cost; `states_width` is the width of what it attends to."""

    width: int = 768
    depth: int = 12
    intermediate: int = 3072
    states_width: int = 768
    vocabulary: int = 30524
    sd_dim: int = 768


def vision(shape: VisionShape, layers: Sequence[LayerTrace], num_learnable: int) -> Cost:
    """Multiply-accumulates of one image through a vision transformer, final norm included."""
    cost = patches(shape)
    for layer in layers:
        cost += pre_norm_layer(layer, shape.width, int(shape.width * shape.mlp_ratio))
        cost += pruning(layer, shape.width, shape.sd_dim, num_learnable, mapped=shape.width != shape.sd_dim)
    return cost + layer_norm(layers[-1].left, shape.width)


def tower(shape: TowerShape, layers: Sequence[LayerTrace]) -> Cost:
    """Multiply-accumulates of one image through anybody's vision transformer, final norm included, heads not."""
    cost = (layers[0].entered - shape.prefix) * shape.patch + layer_norm(layers[-1].left, shape.width)
    for layer in layers:
        cost += pre_norm_layer(layer, shape.width, shape.hidden)
        cost += layer.scored * covering(layer, shape.width, shape.prefix, shape.class_token)
    return cost


def text(
    shape: TextShape,
    layers: Sequence[LayerTrace],
    num_learnable: int,
    states: Sequence[int] = (),
    merged_layers: Sequence[int] = (),
) -> Cost:
    """Multiply-accumulates of one text through a BERT.

    Args:
        shape: sizes of the BERT.
        layers: what its layers did.
        num_learnable: K.
        states: lengths S of the sequences each layer attends to; none for text alone.
        merged_layers: indices of the layers that merge two cross-attentions by a linear layer (NLVR2).
    """
    width = shape.width
    cost = layer_norm(layers[0].entered, width)  # embeddings
    for index, layer in enumerate(layers):
        cost += self_attention(layer.entered, width) + layer_norm(layer.entered, width)
        cost += pruning(layer, width, shape.sd_dim, num_learnable, mapped=width != shape.sd_dim)
        cost += sum(cross_attention(layer.left, length, width, shape.states_width) for length in states)
        cost += 2 * layer.left * width * width * (index in merged_layers)
        cost += layer_norm(layer.left, width) * bool(states)
        cost += 2 * layer.left * width * shape.intermediate + layer_norm(layer.left, width)
    return cost


def language_head(shape: TextShape, length: int) -> Cost:
    """Multiply-accumulates of the logits over the vocabulary at `length` positions."""
    return length * shape.width * (shape.width + shape.vocabulary) + layer_norm(length, shape.width)


def patches(shape: VisionShape) -> float:
    """The convolution that turns an image into tokens."""
    return (shape.length - 1) * 3 * shape.patch_size**2 * shape.width


def pre_norm_layer(layer: LayerTrace, width: int, hidden: int) -> Cost:
    """A transformer layer that norms first: attention over what enters, feed-forward over what is left."""
    cost = layer_norm(layer.entered, width) + self_attention(layer.entered, width)
    return cost + layer_norm(layer.left, width) + 2 * layer.left * width * hidden


def self_attention(length: int, width: int) -> Cost:
    """Four projections and the two products with the attention map."""
    return 4 * length * width**2 + 2 * length**2 * width


def cross_attention(length: int, states: int, width: int, states_width: int) -> Cost:
    """Query and output projection of the hidden states, keys and values of the other sequence, the two products."""
    return 2 * length * width**2 + 2 * states * states_width * width + 2 * length * states * width


def pruning(layer: LayerTrace, width: int, sd_dim: int, num_learnable: int, mapped: bool) -> Cost:
    """A rule's own cost in a layer.

    MADTP's is alignment, threshold and, where tokens go, the merged token, made of those that go.
    """
    if layer.rule == COVERAGE:
        return covering(layer, width) * layer.scored
    tokens = layer.entered - 1
    alignment = tokens * num_learnable * sd_dim + tokens * width * sd_dim * mapped
    merged = (1 + layer.entered - layer.left) * width * (layer.left < layer.entered)
    return (alignment + tokens * num_learnable + merged) * layer.scored


def covering(layer: LayerTrace, width: int, prefix: int = 1, class_token: bool = True) -> Cost:
    """Coverage's own cost: the class token's attention and, where tokens go, similarities of all pairs and means."""
    tokens = layer.entered - prefix
    return (tokens * class_token + (tokens + 1) * tokens * (layer.left < layer.entered)) * width


def layer_norm(length: int, width: int) -> Cost:
    """Five operations per element."""
    return 5 * length * width


def nlvr(
    image: VisionShape, bert: TextShape, layers: dict[str, Sequence[LayerTrace]], num_learnable: int, first_merged: int
) -> Cost:
    """Multiply-accumulates of two images, a statement and the classifier on its first token."""
    states = of_both_images(layers["image"][-1].left)
    statement = text(bert, layers["text"], num_learnable, states, range(first_merged, bert.depth))
    images = sum(of_both_images(vision(image, layers["image"], num_learnable)))
    return images + statement + bert.width * (bert.width + 2)


def of_both_images(values: Cost) -> Sequence[Cost]:
    """Of numbers for the left images of a batch, then the right ones: both halves. One number is that of all."""
    return np.split(values, 2) if np.ndim(values) else (values, values)


def caption(image: VisionShape, bert: TextShape, layers: dict[str, Sequence[LayerTrace]], num_learnable: int) -> Cost:
    """Multiply-accumulates of an image and the decoder run once over a caption."""
    return vision(image, layers["image"], num_learnable) + decode(bert, layers["decoder"], layers["image"][-1].left)


def vqa(
    image: VisionShape,
    bert: TextShape,
    layers: dict[str, Sequence[LayerTrace]],
    num_learnable: int,
) -> Cost:
    """Multiply-accumulates of an image, a question over it and the decoder run once over an answer."""
    question = text(bert, layers["text"], num_learnable, [layers["image"][-1].left])
    answer = decode(replace(bert, states_width=bert.width), layers["decoder"], layers["text"][-1].left)
    return vision(image, layers["image"], num_learnable) + question + answer


def retrieval(
    image: VisionShape,
    bert: TextShape,
    layers: dict[str, Sequence[LayerTrace]],
    num_learnable: int,
    feature_width: int,
) -> Cost:
    """Multiply-accumulates of BLIP's features of one image and one text, and of judging one pair.

    Where a trace has several pairs of each image, they count as their mean.
    """
    features = image_feature(image, layers, num_learnable, feature_width)
    features = features + text_feature(bert, layers, num_learnable, feature_width)
    pairs = match(bert, layers, num_learnable)
    return features + (np.reshape(pairs, (len(features), -1)).mean(axis=1) if np.ndim(pairs) else pairs)


def image_feature(
    image: VisionShape, layers: dict[str, Sequence[LayerTrace]], num_learnable: int, feature_width: int
) -> Cost:
    """Multiply-accumulates of an image and the projection of its class token."""
    return vision(image, layers["image"], num_learnable) + image.width * feature_width


def text_feature(
    bert: TextShape, layers: dict[str, Sequence[LayerTrace]], num_learnable: int, feature_width: int
) -> Cost:
    """Multiply-accumulates of a text alone and the projection of its first token."""
    return text(bert, layers["text"], num_learnable) + bert.width * feature_width


def match(bert: TextShape, layers: dict[str, Sequence[LayerTrace]], num_learnable: int) -> Cost:
    """Multiply-accumulates of a text over an image's tokens and the classifier on its first token.

    Where token counts are given apart, an equal number of texts in a row belongs to each image.
    """
    texts, images = layers["multimodal"], layers["image"][-1].left
    if np.ndim(images):
        images = np.repeat(images, np.size(texts[-1].left) // len(images))
    return text(bert, texts, num_learnable, [images]) + bert.width * 2


def clip(
    image: VisionShape,
    words: TextShape,
    layers: dict[str, Sequence[LayerTrace]],
    num_learnable: int,
    feature_width: int,
) -> Cost:
    """Multiply-accumulates of CLIP's features of one image and one text."""
    cost = clip_image_feature(image, layers, num_learnable, feature_width)
    return cost + clip_text_feature(words, layers, num_learnable, feature_width)


def clip_image_feature(
    image: VisionShape, layers: dict[str, Sequence[LayerTrace]], num_learnable: int, feature_width: int
) -> Cost:
    """Multiply-accumulates of CLIP's feature of an image."""
    cost = patches(image) + layer_norm(image.length, image.width)
    widths = image.width, int(image.width * image.mlp_ratio), image.sd_dim
    return cost + clip_tower(*widths, layers["image"], num_learnable, feature_width)


def clip_text_feature(
    words: TextShape, layers: dict[str, Sequence[LayerTrace]], num_learnable: int, feature_width: int
) -> Cost:
    """Multiply-accumulates of CLIP's feature of a text."""
    widths = words.width, words.intermediate, words.sd_dim
    return clip_tower(*widths, layers["text"], num_learnable, feature_width)


def clip_tower(
    width: int, hidden: int, sd_dim: int, layers: Sequence[LayerTrace], num_learnable: int, feature_width: int
) -> Cost:
    """Multiply-accumulates of CLIP's layers, of either tower, and of the feature that is read at a single token."""
    cost = layer_norm(1, width) + width * feature_width
    for layer in layers:
        cost += pre_norm_layer(layer, width, hidden) + pruning(layer, width, sd_dim, num_learnable, mapped=True)
    return cost


def decode(bert: TextShape, layers: Sequence[LayerTrace], states: int) -> Cost:
    """Multiply-accumulates of the decoder over a whole text, logits at every position."""
    return text(bert, layers, 0, [states]) + language_head(bert, layers[0].entered)


def paper_table() -> dict[str, float]:
    """Dense GFLOPs of the paper's base models on the inputs it counted."""
    image, bert = VisionShape(), TextShape()
    large = replace(image, image_size=480)
    rows = {"image": dense_layers(image.depth, image.length), "text": dense_layers(bert.depth, 36)}
    decoded = rows | {"decoder": dense_layers(bert.depth, 15)}
    return {
        "nlvr": nlvr(image, bert, rows, 0, first_merged=6) / GIGA,
        "caption": caption(image, bert, decoded, 0) / GIGA,
        "vqa": paper_vqa(large, bert) / GIGA,
        "retrieval": paper_retrieval(image, bert) / GIGA,
        "retrieval_clip": paper_clip() / GIGA,
    }


def paper_vqa(image: VisionShape, bert: TextShape) -> float:
    """The paper's odd input: one image, 32 questions of 14 tokens over it, 47 answers of 5 tokens over one question.

    Keys and values of the image and of the question are projected once.
    """
    questions, answers = dense_layers(bert.depth, 14), dense_layers(bert.depth, 5)
    image_keys_values = 2 * bert.depth * image.length * bert.states_width * bert.width
    question_keys_values = 2 * bert.depth * 14 * bert.width**2
    cost = vision(image, dense_layers(image.depth, image.length), 0)
    cost += 32 * (text(bert, questions, 0, [image.length]) - image_keys_values) + image_keys_values
    return cost + 47 * (decode(bert, answers, 14) - question_keys_values) + question_keys_values


def paper_retrieval(image: VisionShape, bert: TextShape, feature_width: int = 256, queue: int = 57600) -> float:
    """One training step on one image and one text of 35 tokens.

    Counted are the features of the online and of the momentum towers, each held against the queue and the one pair of
    the other modality, and three pairs to judge: the image and the text, either of them with a hard negative.
    """
    rows = {"image": dense_layers(image.depth, image.length), "text": dense_layers(bert.depth, 35)}
    rows["multimodal"] = rows["text"]
    features = image_feature(image, rows, 0, feature_width) + text_feature(bert, rows, 0, feature_width)
    return 2 * features + 4 * feature_width * (queue + 1) + 3 * match(bert, rows, 0)


def paper_clip(queue: int = 57600) -> float:
    """One image and one text of 77 tokens through ViT-L/14@336's online and momentum towers.

    Every feature is held against the queue and the one pair of the other modality.
    """
    image = VisionShape(image_size=336, patch_size=14, width=1024, depth=24)
    words, feature_width = TextShape(), 768
    rows = {"image": dense_layers(image.depth, image.length), "text": dense_layers(words.depth, 77)}
    return 2 * clip(image, words, rows, 0, feature_width) + 4 * feature_width * (queue + 1)


def run(args: Namespace) -> None:
    """Prints the table."""
    for task, gflops in paper_table().items():
        print(f"{task} {gflops:.6f} GFLOPs")
