"""When tokens go: the shape of coverage's schedule, found without labels.

Of schedules that cost the same, the best one is that whose model answers most like the dense one. That is measured on
the calibration sample, by what a task says of its answers before they are decided (`Task.outputs`): features of length
1 or probabilities. Their squared distance needs no label.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

from torch import nn

from madtp.cost.measure import CalibrationSample, device_of, to_device
from madtp.cost.processes import all_reduce_sum
from madtp.cost.schedule import amounts_for, least_moved, squared_distance
from madtp.method.rules import COVERAGE
from madtp.run.preparation import Run
from madtp.run.task import Task


class Answering(Protocol):
    """Whose model is asked: a run, or a predictor."""

    task: Task
    model: nn.Module

    def inference(self) -> AbstractContextManager[nn.Module]: ...


class Sample(Protocol):
    """What it is asked: the calibration sample of a run, or a user's own batches."""

    batches: Sequence[dict]

    def cost(self, task: Task, model: nn.Module, temperature: float) -> float: ...


def settle_shape(run: Run, sample: CalibrationSample, share: float | None, found: float | None) -> float | None:
    """Gives the model its schedule: the configuration's shape, or that found before, or the best at a share of dense.

    Args:
        run: whose model prunes.
        sample: what the shapes are compared on.
        share: of dense, that the model shall cost in the end; None where a temperature is given instead.
        found: the shape of a run that is resumed, or None.

    Returns:
        The shape; None where the rule has no schedule, or nothing is pruned.

    Raises:
        RatioOutOfReach: with one token left in every layer the model still costs more than this share.
    """
    if run.config["keep"] != COVERAGE:
        return None
    shape = run.config["shape"] or found
    if shape is None and share is not None:
        shape = find_shape(run, sample, share)
    if shape is not None:
        set_shape(run.model, shape)
    return shape


def set_shape(model: nn.Module, shape: float) -> None:
    """Gives a model this shape of schedule."""
    model.keep = replace(model.keep, shape=shape)


def find_shape(run: Answering, sample: Sample, share: float) -> float:
    """The shape at which a model that costs this share of dense answers most like the dense one."""

    def cost(shape: float, amount: float) -> float:
        set_shape(run.model, shape)
        return sample.cost(run.task, run.model, amount)

    with run.inference() as model:
        amounts = amounts_for(cost, share)
        moved = dict.fromkeys(amounts, 0.0)
        for batch in sample.batches:
            batch = run.task.answered_by(model, to_device(batch, device_of(model)))
            dense = run.task.outputs(model, batch, 0.0)
            for shape, amount in amounts.items():
                set_shape(run.model, shape)
                moved[shape] += squared_distance(dense, run.task.outputs(model, batch, amount))
    return least_moved({shape: all_reduce_sum(value) for shape, value in moved.items()}, share)
