"""Means of streams of numbers, over all processes when asked."""

import math
from collections import defaultdict

import torch

from madtp.cost.processes import all_reduce_sum


class AverageMeter:
    """The mean of a stream of numbers. Tensors are summed on their device; only reading the mean waits for it."""

    def __init__(self):
        self.total = 0.0
        self.count = 0

    def update(self, value: torch.Tensor | float, n: int = 1) -> None:
        """Adds `value`, the mean over `n` samples."""
        if isinstance(value, torch.Tensor):
            value = value.detach().double()
        self.total = self.total + value * n
        self.count += n

    @property
    def mean(self) -> float:
        """The mean so far, NaN before the first update."""
        return float(self.total) / self.count if self.count else math.nan


class Meters(defaultdict):
    """Averages by name; `str()` is the line of a log."""

    def __init__(self):
        super().__init__(AverageMeter)

    def update(self, n: int = 1, **values: torch.Tensor | float) -> None:
        """Adds one value to each named meter, each the mean over `n` samples."""
        for name, value in values.items():
            self[name].update(value, n)

    def means(self) -> dict[str, float]:
        """The mean of each meter of this process."""
        return {name: meter.mean for name, meter in self.items()}

    def synchronize(self) -> None:
        """Makes every meter the one over all processes. All processes call it, holding the same names."""
        for name in sorted(self):
            meter = self[name]
            meter.total = all_reduce_sum(float(meter.total))
            meter.count = int(all_reduce_sum(meter.count))

    def __str__(self) -> str:
        return "  ".join(f"{name} {mean:.4g}" for name, mean in self.means().items())
