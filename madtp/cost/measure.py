"""What the forward passes of an evaluation cost, and the sample of batches the controller steers by.

Costs come from traces alone: measuring them takes no forward pass of its own.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from madtp.cost.flops import Cost
from madtp.cost.processes import all_gather_objects, all_reduce_sum, rank, world_size
from madtp.cost.schedule import planned
from madtp.cost.trace import Trace

SPREAD = (10, 90)  # percentiles that tell how much samples differ


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
        cost: GFLOPs from the trace of a batch: of each of its samples, or one number for all.
    """

    def __init__(self, cost: Callable[[Trace], Cost]):
        self.cost = cost
        self.seconds = 0.0
        self.costs = Counter()  # how many samples had a cost, and a dense one
        self.tokens = Counter()  # how many sequences had so many tokens left after a layer of a tower

    @contextmanager
    def forward(self, samples: int) -> Iterator[Trace]:
        """Times one forward pass of a batch and counts what it writes into the trace."""
        trace, started = Trace(), _now()
        yield trace
        self.seconds += _now() - started
        spent, dense = self.cost(trace), self.cost(trace.dense())
        self.costs.update(zip(_each(spent, samples), _each(dense, samples), strict=True))
        for tower, layers in trace.layers.items():
            for index, layer in enumerate(layers):
                self.tokens.update((tower, index, left) for left in _each(layer.left, samples))

    def summary(self) -> dict:
        """Means per sample over all processes, their spread over the samples, and the speed.

        Returns:
            `gflops`, `gflops_dense`, `percent` of dense and `tokens` left after every layer, tower by tower, are means;
            `percent_p10`, `percent_p90`, `tokens_p10` and `tokens_p90` the 10th and the 90th percentile;
            `samples_per_second` is that of all processes together, in the time of the slowest.
        """
        processes = all_gather_objects((self.costs, self.tokens, self.seconds))
        costs, tokens = (sum((process[part] for process in processes), Counter()) for part in (0, 1))
        samples = costs.total()
        gflops, dense = (sum(pair[one] * count for pair, count in sorted(costs.items())) / samples for one in (0, 1))
        shares = Counter()
        for (spent, whole), count in costs.items():
            shares[100 * spent / whole] += count
        layers = {}
        for (tower, index, left), count in sorted(tokens.items()):
            layers.setdefault(tower, {}).setdefault(index, {})[left] = count
        return {
            "percent": 100 * gflops / dense,
            "gflops": gflops,
            "gflops_dense": dense,
            **{f"percent_p{rank}": percentile(shares, rank) for rank in SPREAD},
            "tokens": {tower: [mean(found) for found in rows.values()] for tower, rows in layers.items()},
            **{
                f"tokens_p{rank}": {
                    tower: [percentile(found, rank) for found in rows.values()] for tower, rows in layers.items()
                }
                for rank in SPREAD
            },
            "samples_per_second": samples / max(seconds for _, _, seconds in processes),
        }


def _each(values: Cost, samples: int) -> list[float]:
    """One number for each sample."""
    return np.broadcast_to(values, np.shape(values) or samples).tolist()


def mean(counts: Mapping[float, int]) -> float:
    """The mean of numbers, each so many times there."""
    return sum(value * count for value, count in counts.items()) / sum(counts.values())


def percentile(counts: Mapping[float, int], rank: float) -> float:
    """The smallest of some numbers, each so many times there, that `rank` percent of them do not exceed."""
    wanted, met = rank / 100 * sum(counts.values()), 0
    for value in sorted(counts):
        met += counts[value]
        if met >= wanted:
            return value
    raise ValueError("there are no numbers")


def _now() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def traces(task, model: nn.Module, batches: Iterable[dict], temperature: float, dense: list[Trace]) -> Iterator[Trace]:
    """What inference does to every batch at a temperature, without a forward pass where that is known before.

    Args:
        task: whose `probe` is the forward pass.
        model: that infers.
        batches: as the loader gives them.
        temperature: or amount.
        dense: what it does at 0, shapes alone whatever the weights; an empty list is filled when that is needed.
    """
    schedule = getattr(getattr(model, "keep", None), "schedule", None)
    if schedule is None:
        yield from probed(task, model, batches, temperature)
        return
    if not dense:
        dense += probed(task, model, batches, 0.0)
    for trace in dense:
        layers = trace.layers["image"]
        plan = planned(schedule(layers[0].entered - 1), temperature)
        yield Trace({**trace.layers, "image": plan[: len(layers)]})  # whose plan may be for a deeper tower


def probed(task, model: nn.Module, batches: Iterable[dict], temperature: float) -> Iterator[Trace]:
    """What a forward pass at this temperature does to every batch."""
    for batch in batches:
        trace = Trace()
        task.probe(model, to_device(batch, device_of(model)), temperature, trace)
        yield trace


class CalibrationSample:
    """Evaluation batches, evenly spread and always the same, on which a temperature's cost is measured.

    Every process keeps its own share of them in memory; together they are the same batches for any number of processes.

    Args:
        loader: of the evaluation split.
        batches: how many, over all processes; fewer if the split has fewer.
    """

    def __init__(self, loader: DataLoader, batches: int):
        self.loader, self.count = loader, batches
        self._dense: list[Trace] = []  # see `traces`

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
        """Share of dense that inference costs at this temperature, the mean over the samples of all processes."""
        spent = dense = 0.0
        for batch, trace in zip(self.batches, traces(task, model, self.batches, temperature, self._dense), strict=True):
            spent += len(batch["index"]) * float(np.mean(task.cost(model, trace)))
            dense += len(batch["index"]) * float(np.mean(task.cost(model, trace.dense())))
        return all_reduce_sum(spent) / all_reduce_sum(dense)
