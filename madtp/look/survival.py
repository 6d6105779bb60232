"""Which of a sample's tokens are left after every layer, followed from the trace of a forward pass."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from madtp.cost.trace import LayerTrace

Token = tuple[int, ...]  # the original tokens that it stands for, by number: one, or several that were merged


class Step(NamedTuple):
    """What a layer did to the prunable tokens of a sample.

    Attributes:
        entered: in order.
        left: the kept ones in order and, where anything was dropped, the token that merges the dropped ones.
    """

    entered: list[Token]
    left: list[Token]

    @property
    def prunes(self) -> bool:
        """Whether anything went."""
        return self.entered != self.left

    @property
    def kept(self) -> list[int]:
        """The original tokens that still stand for themselves."""
        return [token[0] for token in self.left if len(token) == 1]

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
            chosen = set(layer.kept.of(sample))
            left = [token for place, token in enumerate(tokens) if place in chosen]
            dropped = [token for place, token in enumerate(tokens) if place not in chosen]
            if dropped:
                left = [*left, tuple(sorted(sum(dropped, ())))]
        steps.append(Step(tokens, left))
        tokens = left
    return steps


def tokens_of(counts: int | np.ndarray, sample: int) -> int:
    """A sample's own number of tokens in a trace."""
    return int(counts[sample] if np.ndim(counts) else counts)
