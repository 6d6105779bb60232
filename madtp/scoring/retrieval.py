"""Retrieval with either model: which text belongs to which image? What the two have in common.

Shapes: I images, T texts.
"""

from abc import abstractmethod
from collections.abc import Iterator
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp.cost.measure import SPREAD, CostMeter
from madtp.cost.processes import gather_in_order, rank, world_size
from madtp.cost.trace import Trace
from madtp.run.task import Task
from madtp.scoring import metrics
from madtp.shared.momentum import ramped_alpha


class Retrieval(Task):
    """Finds the texts of an image and the image of a text."""

    loss_weights = {"loss_ita": 1.0, "loss_sim": 0.1, "loss_sim_m": 0.1}

    def remarks(self, split: str, dataset: Dataset) -> Iterator[str]:
        if split == "train":
            if (size := self.config["queue_size"]) > len(dataset):
                way_out = f"set queue_size to {len(dataset)} or less"
                yield f"the queue holds {size} features, the split only {len(dataset)} captions: {way_out}"
            return
        for kind, numbers in (("images", dataset.same_images), ("texts", dataset.same_texts)):
            if same := len(numbers) - len(set(numbers)):
                yield f"{same} of {len(numbers)} {kind} repeat others; whichever of them is found, it is right"

    def losses(self, model: nn.Module, batch: dict, temperature: float, progress: float) -> dict[str, Tensor]:
        alpha = ramped_alpha(self.config["alpha"], progress)
        return model(batch["image"], batch["caption"], alpha, batch["idx"], temperature)

    def predict(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> list[str]:
        """For each image the best of the batch's captions."""
        best = self.scores(model, batch, temperature, trace).argmax(dim=1)
        return [batch["caption"][number] for number in best.tolist()]

    @abstractmethod
    def scores(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> Tensor:
        """How well every image goes with every caption of the batch: [I, T]."""

    def asked(self, batch: dict, row: int) -> str:
        return batch["caption"][row]

    def answered(self, result: str) -> str:
        return result

    def score(self, metrics: dict) -> float:
        return metrics["r_mean"]


def own_batches(inputs: int, size: int) -> range:
    """Where this process's batches of so many inputs begin: the processes take them in turn."""
    return range(rank() * size, inputs, world_size() * size)


def gather_features(parts: list[tuple[int, Tensor]]) -> Tensor:
    """Features of all processes' batches, in order; each batch comes with the number of its first row."""
    return torch.cat([features for _, features in gather_in_order(parts)])


def matches_of(dataset: Dataset) -> metrics.Matches:
    """Which texts of a data set belong to which of its images."""
    return metrics.Matches(dataset.text_to_image, dataset.same_images, dataset.same_texts)


def summary(*meters: CostMeter) -> dict:
    """Cost, tokens and speed of a sample that needs one forward pass of every meter; later ones overrule tokens.

    Its spread is that of a sample which takes the same percentile in every part.
    """
    parts = [meter.summary() for meter in meters]
    gflops, dense = (sum(part[name] for part in parts) for name in ("gflops", "gflops_dense"))
    spread = {
        name: sum(part[name] * part["gflops_dense"] for part in parts) / dense
        for name in (f"percent_p{rank}" for rank in SPREAD)
    }
    tokens = {
        name: reduce(or_, (part[name] for part in parts))
        for name in ("tokens", *(f"tokens_p{rank}" for rank in SPREAD))
    }
    seconds = sum(1 / part["samples_per_second"] for part in parts)
    return {
        "percent": 100 * gflops / dense,
        "gflops": gflops,
        "gflops_dense": dense,
        **spread,
        **tokens,
        "samples_per_second": 1 / seconds,
    }
