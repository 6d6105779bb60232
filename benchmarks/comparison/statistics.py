"""Are two methods different? Differences paired by photo, with the interval in which 95 % of resamples fall.

Photos are drawn anew with replacement, each with everything that was asked of it; what they are compared with, such as
the gallery of a retrieval, stays fixed.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
INSIDE = 0.95


class Difference(NamedTuple):
    """A difference of means and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]".replace("-", "−")


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0
) -> Difference:
    """The difference of two methods' means over the same photos, and its interval.

    Args:
        ours: a photo's score, or its sum over what was asked of it.
        theirs: of the other method.
        weights: how much was asked of each photo, where sums are given.
        seed: of the resampling, the same photos for every pair of methods.
    """
    differences = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    weights = np.ones_like(differences) if weights is None else np.asarray(weights, dtype=float)
    counts = resamples(len(differences), seed)
    values = (counts @ differences) / (counts @ weights)
    low, high = np.quantile(values, [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
    return Difference(float(differences.sum() / weights.sum()), float(low), float(high))


@cache
def resamples(photos: int, seed: int) -> np.ndarray:
    """How often each photo is drawn, [RESAMPLES, photos]."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(photos, np.full(photos, 1 / photos), size=RESAMPLES).astype(np.float32)
