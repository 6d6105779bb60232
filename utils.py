"""What every part of the project shares: errors, processes, files, handed on from `madtp`; signals, seeds, meters."""

import math
import os
import random
import signal
from collections import defaultdict

import numpy as np
import torch

from madtp.cost.processes import (
    all_gather,
    all_gather_objects,
    all_reduce_sum,
    barrier,
    from_main,
    is_distributed,
    is_main,
    on_any_process,
    rank,
    world_size,
)
from madtp.method.errors import UserError, excerpt
from madtp.shared.files import (
    FETCH,
    POINTER,
    forbidden,
    prepare_output,
    read_json,
    whole_file,
    write_atomic,
    writing_to,
)
from madtp.shared.launch import init_distributed, leave_distributed

__all__ = [
    "AverageMeter",
    "FETCH",
    "HANGUP",
    "Meters",
    "POINTER",
    "SIGNALS",
    "UserError",
    "all_gather",
    "all_gather_objects",
    "all_reduce_sum",
    "barrier",
    "cosine_lr",
    "excerpt",
    "forbidden",
    "from_main",
    "init_distributed",
    "is_distributed",
    "is_main",
    "leave_distributed",
    "on_any_process",
    "prepare_output",
    "rank",
    "read_json",
    "set_seed",
    "whole_file",
    "world_size",
    "write_atomic",
    "writing_to",
]

HANGUP = getattr(signal, "SIGHUP", None)  # when a terminal closes; not on Windows
SIGNALS = (signal.SIGINT, signal.SIGTERM, *filter(None, [HANGUP]))  # that ask a process to leave


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, numpy and torch on every device.

    Args:
        seed: at least 0.
        deterministic: also compute with operations alone that give the same bits again, where GPUs have a choice.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses without it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def cosine_lr(init: float, minimum: float, step: int, total: int) -> float:
    """The learning rate at `step` of `total`: half a cosine from `init` at 0 to `minimum` at `total`."""
    progress = min(step / total, 1.0) if total > 0 else 0.0
    return minimum + (init - minimum) * (1 + math.cos(math.pi * progress)) / 2


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
