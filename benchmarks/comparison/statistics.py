"""Are two methods different? Differences with their 95 % intervals, paired by photo or by seed.

Photos are drawn anew with replacement, each with everything that was asked of it; what they are compared with, such as
the gallery of a retrieval, stays fixed. The interval is that in which 95 % of resamples fall. Seeds are too few to draw
from: three of them have Student's interval.
"""

from collections.abc import Sequence
from functools import cache
from math import inf, isfinite, sqrt
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
INSIDE = 0.95
SEEDS = 3  # that an interval is made of


class Difference(NamedTuple):
    """A difference of means and its interval, which is endless where nothing tells how wide it is."""

    value: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return isfinite(self.high - self.low)

    def __str__(self) -> str:
        interval = f"[{self.low:+.1f}, {self.high:+.1f}]" if self.bounded else "(no interval)"
        return f"{self.value:+.1f} {interval}".replace("-", "−")


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


def difference_by_seed(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The difference of two methods' means over the same seeds, and Student's interval where they are three.

    The quantile of two degrees of freedom has a closed form, INSIDE sqrt(2 / (1 - INSIDE^2)) = 4.303. Fewer seeds get
    no interval: one has no spread, and that of two would say nothing.

    Args:
        ours: a score of each seed.
        theirs: of the other method.

    Raises:
        ValueError: there are no seeds, more than three, or not as many on both sides.
    """
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    if not 1 <= len(differences) <= SEEDS:
        raise ValueError(f"a difference by seed is of 1 to {SEEDS} seeds, not of {len(differences)}")
    if len(differences) < SEEDS:
        return Difference(mean(differences), -inf, inf)
    reach = INSIDE * sqrt(2 / (1 - INSIDE**2)) * stdev(differences) / sqrt(SEEDS)
    return Difference(mean(differences), mean(differences) - reach, mean(differences) + reach)


@cache
def resamples(photos: int, seed: int) -> np.ndarray:
    """How often each photo is drawn, [RESAMPLES, photos]."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(photos, np.full(photos, 1 / photos), size=RESAMPLES).astype(np.float32)
