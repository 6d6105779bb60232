"""When tokens go: the shape of coverage's schedule, found without labels.

Of schedules that cost the same, the best one is that whose model answers most like the dense one. That is measured on
the calibration sample, by what a task says of its answers before they are decided (`Task.outputs`): features of length
1 or probabilities. Their squared distance needs no label.
"""

import logging
from dataclasses import replace

from torch import Tensor

from madtp.cost.measure import CalibrationSample, device_of, to_device
from madtp.cost.processes import all_reduce_sum
from madtp.cost.temperature import FIRST_TEMPERATURE, RatioOutOfReach, calibrate
from madtp.method.keep import Coverage
from madtp.method.rules import COVERAGE
from madtp.run.preparation import Run

SHAPES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)

logger = logging.getLogger(__name__)


def settle_shape(run: Run, sample: CalibrationSample, share: float | None, found: float | None) -> float | None:
    """Gives the model its schedule: the shape found before, or the configuration's, or the best at a share of dense.

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
    shape = found or run.config["shape"]
    if shape is None and share is not None:
        shape = find_shape(run, sample, share)
    if shape is not None:
        set_shape(run, shape)
    return shape


def set_shape(run: Run, shape: float) -> Coverage:
    """Gives the model this shape of schedule."""
    run.model.keep = replace(run.model.keep, shape=shape)
    return run.model.keep


def find_shape(run: Run, sample: CalibrationSample, share: float) -> float:
    """The shape at which a model that costs this share of dense answers most like the dense one."""
    with run.inference() as model:
        amounts = amounts_for(run, sample, share)
        moved = dict.fromkeys(amounts, 0.0)
        for batch in sample.batches:
            batch = run.task.answered_by(model, to_device(batch, device_of(model)))
            dense = run.task.outputs(model, batch, 0.0)
            for shape, amount in amounts.items():
                set_shape(run, shape)
                moved[shape] += squared_distance(dense, run.task.outputs(model, batch, amount))
    total = {shape: all_reduce_sum(value) for shape, value in moved.items()}
    best = min(total, key=total.get)
    table = ", ".join(f"{shape:g}: {value / total[best]:.2f}" for shape, value in total.items())
    logger.info(
        "schedule of shape %g at %.4g %% of dense; how far each moves the outputs: %s", best, 100 * share, table
    )
    return best


def amounts_for(run: Run, sample: CalibrationSample, share: float) -> dict[float, float]:
    """For every shape that can cost this share of dense, the amount at which it does."""
    amounts, floor, start = {}, None, FIRST_TEMPERATURE
    for shape in SHAPES:
        set_shape(run, shape)
        try:
            start = calibrate(lambda amount: sample.cost(run.task, run.model, amount), share, start)
        except RatioOutOfReach as error:
            floor = error
        else:
            amounts[shape] = start
    if not amounts:
        raise floor
    return amounts


def squared_distance(one: Tensor, other: Tensor) -> float:
    """Sum of squares, over all samples and numbers."""
    return float((one.double() - other.double()).square().sum())
