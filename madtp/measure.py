"""What the forward passes of an evaluation cost, and the sample of batches the controller steers by.

Costs come from traces alone: measuring them takes no forward pass of its own.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from madtp.trace import Trace
from utils import all_gather_objects, all_reduce_sum, is_main, rank, world_size


def progress_bar(loader: DataLoader, name: str) -> tqdm:
    """The loader's batches with a bar on the main process's terminal; none where the output is no terminal."""
    return tqdm(loader, desc=name, leave=False, disable=not (is_main() and sys.stderr.isatty()))


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on `device`, everything else as it is."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


class CostMeter:
    """Sums cost, tokens and time over the forward passes of one evaluation, and over all processes when read.

    Args:
        cost: GFLOPs of one sample, from the trace of its batch.
    """

    def __init__(self, cost: Callable[[Trace], float]):
        self.cost = cost
        self.totals = Counter()

    @contextmanager
    def forward(self, samples: int) -> Iterator[Trace]:
        """Times one forward pass of a batch and counts what it writes into the trace."""
        trace, started = Trace(), _now()
        yield trace
        self.totals["seconds"] += _now() - started
        self.totals["samples"] += samples
        self.totals["gflops"] += samples * self.cost(trace)
        self.totals["gflops_dense"] += samples * self.cost(trace.dense())
        for tower, layers in trace.layers.items():
            self.totals.update({(tower, index): samples * layer.left for index, layer in enumerate(layers)})

    def summary(self) -> dict:
        """Means per sample over all processes: cost, percent of dense, tokens left after every layer; and the speed."""
        processes = all_gather_objects(self.totals)
        totals = sum(processes, Counter())
        samples = totals["samples"]
        tokens = {}
        for tower, layer in sorted(key for key in totals if isinstance(key, tuple)):
            tokens.setdefault(tower, []).append(totals[tower, layer] / samples)
        return {
            "gflops": totals["gflops"] / samples,
            "gflops_dense": totals["gflops_dense"] / samples,
            "percent": 100 * totals["gflops"] / totals["gflops_dense"],
            "tokens": tokens,
            "samples_per_second": samples / max(process["seconds"] for process in processes),
        }


def _now() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class CalibrationSample:
    """Evaluation batches, evenly spread and always the same, on which a temperature's cost is measured.

    Every process keeps its own share of them in memory; together they are the same batches for any number of processes.

    Args:
        loader: of the evaluation split.
        batches: how many, over all processes; fewer if the split has fewer.
    """

    def __init__(self, loader: DataLoader, batches: int):
        self.loader, self.count = loader, batches

    @cached_property
    def batches(self) -> list[dict]:
        """This process's share, read when it is first needed; all processes read together."""
        loader, own = self.loader, list(self.loader.batch_sampler)
        total = int(all_reduce_sum(len(own)))
        spread = {index * total // self.count for index in range(self.count)}
        chosen = [batch for place, batch in enumerate(own) if place * world_size() + rank() in spread]
        options = {"collate_fn": loader.collate_fn, "num_workers": min(loader.num_workers, len(chosen))}
        # With a generator of its own a loader leaves the global one alone, and a resumed run may read once more.
        options["generator"] = torch.Generator()
        return list(type(loader)(loader.dataset, batch_sampler=chosen, **options))

    def cost(self, task, model: nn.Module, temperature: float) -> float:
        """Share of dense that inference costs at this temperature, over all processes."""
        device, spent, dense = device_of(model), 0.0, 0.0
        for batch in self.batches:
            trace = Trace()
            task.probe(model, to_device(batch, device), temperature, trace)
            spent += len(batch["index"]) * task.cost(model, trace)
            dense += len(batch["index"]) * task.cost(model, trace.dense())
        return all_reduce_sum(spent) / all_reduce_sum(dense)
