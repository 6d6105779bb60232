"""The loop over the layers of a tower, the same for BLIP and CLIP, for images and texts.

A layer attends, prunes and feeds forward. What it does to the tokens is written down, what it says of their alignment
is summed, and what goes along with them is shortened as they were, here and nowhere else.

Shapes: B batch, L tokens with the class token in front, D width, K learnable tokens, C their width.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from madtp.cost.trace import Trace
from madtp.method.layout import Sequences
from madtp.method.pruning import Kept


class Guidance(NamedTuple):
    """What all layers of a tower prune by.

    Attributes:
        space_dict: [K, C], the learnable tokens; None where nothing is pruned or aligned.
        temperature: pruning temperature; 0 is the dense model.
        align: whether the aligned feature of the similarity loss is wanted.
    """

    space_dict: Tensor | None = None
    temperature: float = 0.0
    align: bool = False

    @classmethod
    def by(cls, space_dict: Tensor | None, temperature: float, align: bool) -> "Guidance":
        """Without learnable tokens the model is dense, whatever the temperature."""
        return cls(space_dict, 0.0 if space_dict is None else temperature, align)

    @property
    def prunes(self) -> bool:
        """Whether layers score their tokens, and may drop some."""
        return self.temperature > 0


class Passed(NamedTuple):
    """What comes out of the last layer.

    Attributes:
        sequences: the tokens, and how they lie.
        aligned: [B, K, C], the aligned feature summed over the layers, or None.
        along: what went along with the tokens, shortened as they were.
        others: what else each layer returned.
    """

    sequences: Sequences
    aligned: Tensor | None
    along: tuple[Tensor | None, ...]
    others: list[list]


def run_layers(
    layers: Sequence[nn.Module],
    sequences: Sequences,
    guidance: Guidance,
    tower: str,
    trace: Trace | None = None,
    checkpointed: int = 0,
    along: tuple[Tensor | None, ...] = (),
    inputs: Iterable[tuple[Any, ...]] | None = None,
) -> Passed:
    """Sends tokens through layers, each with the tokens and the layout that the one before it left.

    Args:
        layers: called as `layer(tokens, layout, guidance, *along, *inputs)`, they return tokens, layout, aligned
            feature or None, what was kept or None, and whatever else.
        sequences: the tokens that enter the first layer.
        guidance: what all of them prune by.
        tower: name under which the trace lists the layers.
        trace: where to write down what each layer did to its tokens.
        checkpointed: how many of the last layers are recomputed in the backward pass to save memory.
        along: what belongs to the tokens: values [B, L] of all of them, or where in each sequence one of them stands,
            [B], which no layer may then drop.
        inputs: what else each layer is given, asked for when its turn comes.
    """
    (tokens, layout), aligned, others = sequences, None, []
    each = zip(layers, repeat(()) if inputs is None else inputs, strict=False)  # `repeat` has no end
    for index, (layer, own) in enumerate(each):
        entered = None if trace is None else layout.lengths(tokens)
        recomputed = index >= len(layers) - checkpointed
        tokens, layout, view, kept, *other = _run(layer, recomputed, tokens, layout, guidance, *along, *own)
        aligned = view if aligned is None else aligned + view
        along = tuple(_shortened(values, kept) for values in along)
        others.append(other)
        if trace is not None:
            trace.add(tower, entered, layout.lengths(tokens), guidance.prunes, kept, layout.rule)
    return Passed(Sequences(tokens, layout), aligned, along, others)


def _run(layer: nn.Module, recomputed: bool, *inputs: Any) -> tuple:
    if recomputed and layer.training and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)


def _shortened(values: Tensor | None, kept: Kept | None) -> Tensor | None:
    """Values [B, L] of the tokens that are left, or the places [B] where tokens stand now."""
    if values is None or kept is None:
        return values
    return kept.place(values) if values.dim() == 1 else kept.gather(values)
