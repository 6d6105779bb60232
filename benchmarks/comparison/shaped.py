"""Rules of merging by coverage's family of schedules, n_l = N exp(-a ((l + 1) / M)^b), so that b is searched alike."""

import math
from dataclasses import dataclass

from torch import Tensor

from benchmarks.comparison.merging import Merger, Merging
from madtp.method.layout import Sequences


@dataclass(frozen=True)
class Shaped:
    """A rule of keeping that merges image tokens; see `madtp.method.keep.Coverage`, in whose place it is searched.

    Attributes:
        merger: chooses what is merged.
        depth: M, layers of the image tower.
        shape: b.
    """

    merger: Merger
    depth: int
    shape: float = 1.0
    texts = False

    def __call__(self, x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
        """x [B, L, D] with sizes of one patch each."""
        return Sequences(x, Merging.by(self.share, self.merger)(x))

    def share(self, layer: int, amount: float) -> float:
        """What is left of the tokens."""
        return math.exp(-amount * ((layer + 1) / self.depth) ** self.shape)
