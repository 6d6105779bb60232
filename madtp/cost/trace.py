"""A record of what a forward pass did to its tokens: the one source of costs, token counts and pictures.

Kept free of torch, so that the cost of the paper's models is printed without loading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from madtp.method.pruning import Kept


class LayerTrace(NamedTuple):
    """What one layer did.

    Token counts are one number where all samples of the batch have the same, else an array [B].

    Attributes:
        entered: tokens of the sequence that entered, class token included.
        left: tokens after pruning, class token and merged token included.
        scored: whether importance and alignment were computed (T > 0).
        kept: what was kept, None where nothing was pruned.
        rule: by which tokens went, "madtp" or "coverage".
    """

    entered: int | np.ndarray
    left: int | np.ndarray
    scored: bool = False
    kept: Kept | None = None
    rule: str = "madtp"

    def take(self, samples: Sequence[int]) -> LayerTrace:
        """The counts of some samples, where each has its own."""
        return LayerTrace(self.entered[samples], self.left[samples], self.scored, rule=self.rule)

    @classmethod
    def join(cls, batches: Sequence[LayerTrace]) -> LayerTrace:
        """The counts of several batches' samples, where each has its own."""
        columns = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("entered", "left"))
        return cls(*columns, batches[0].scored, rule=batches[0].rule)


@dataclass
class Trace:
    """What one forward pass did, tower by tower ("image", "text", "decoder"); models append to it and never read it."""

    layers: dict[str, list[LayerTrace]] = field(default_factory=dict)

    def add(
        self,
        tower: str,
        entered: int | np.ndarray,
        left: int | np.ndarray,
        scored: bool,
        kept: Kept | None = None,
        rule: str = "madtp",
    ) -> None:
        """Appends the next layer of a tower."""
        self.layers.setdefault(tower, []).append(LayerTrace(entered, left, scored, kept, rule))

    def dense(self) -> Trace:
        """The same input's trace at T = 0."""
        return Trace({tower: dense_layers(len(rows), rows[0].entered) for tower, rows in self.layers.items()})


def dense_layers(depth: int, length: int | np.ndarray) -> list[LayerTrace]:
    """Layers that keep all their tokens."""
    return [LayerTrace(length, length)] * depth
