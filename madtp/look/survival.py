"""Which of a sample's tokens are left after every layer, and for which, followed from the trace of a forward pass."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from madtp.cost.trace import LayerTrace
from madtp.method.pruning import Kept
from madtp.method.rules import COVERAGE

Token = tuple[int, ...]  # the original tokens that it stands for, by number; of a group the one that stayed comes first


class Step(NamedTuple):
    """What a layer did to the prunable tokens of a sample.

    Attributes:
        entered: in order.
        left: the kept ones in order and, where anything was dropped, the token that merges the dropped ones.
        grouped: whether nothing is dropped: every token that is left stands for a group, of one or of several.
    """

    entered: list[Token]
    left: list[Token]
    grouped: bool = False

    @property
    def prunes(self) -> bool:
        """Whether anything went."""
        return self.entered != self.left

    @property
    def kept(self) -> list[int]:
        """The original tokens that still stand for themselves, be it for others too."""
        return [token[0] for token in self.left if self.grouped or len(token) == 1]

    @property
    def merged(self) -> list[int]:
        """The original tokens that stood for themselves until this layer merged them."""
        left = set(self.left)
        return [token[0] for token in self.entered if len(token) == 1 and token not in left]


def follow(layers: Sequence[LayerTrace], sample: int) -> list[Step]:
    """The fate of a sample's tokens, layer by layer; numbers count from 0 behind the class token."""
    tokens = [(number,) for number in range(tokens_of(layers[0].entered, sample) - 1)]
    steps = []
    for layer in layers:
        left = tokens
        if layer.kept is not None:
            left = (merged_into_one if layer.kept.groups is None else merged_in_groups)(tokens, layer.kept, sample)
        steps.append(Step(tokens, left, layer.rule == COVERAGE))
        tokens = left
    return steps


def merged_into_one(tokens: list[Token], kept: Kept, sample: int) -> list[Token]:
    """The kept tokens, and one for all the others."""
    chosen = set(kept.of(sample))
    left = [token for place, token in enumerate(tokens) if place in chosen]
    dropped = [token for place, token in enumerate(tokens) if place not in chosen]
    return [*left, tuple(sorted(sum(dropped, ())))] if dropped else left


def merged_in_groups(tokens: list[Token], kept: Kept, sample: int) -> list[Token]:
    """The kept tokens, each with those that went into it."""
    chosen, groups = kept.of(sample), kept.groups[sample].tolist()
    left = [tokens[place] for place in chosen]
    for place, (token, group) in enumerate(zip(tokens, groups, strict=True)):
        if place != chosen[group]:
            left[group] += token
    return left


def tokens_of(counts: int | np.ndarray, sample: int) -> int:
    """A sample's own number of tokens in a trace."""
    return int(counts[sample] if np.ndim(counts) else counts)
