"""When tokens go: shapes of coverage's schedule that cost the same, and which of them moves the outputs least.

How many tokens every layer leaves is known beforehand, so of these questions none needs a label and the first not even
a forward pass.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from madtp.cost.temperature import FIRST_TEMPERATURE, TOLERANCE, RatioOutOfReach, calibrate
from madtp.cost.trace import LayerTrace
from madtp.method.merged import Schedule
from madtp.method.rules import COVERAGE

SHAPES = (0.1, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)

logger = logging.getLogger(__name__)


def planned(schedule: Schedule, amount: float) -> list[LayerTrace]:
    """What the layers of a tower will do to their tokens at an amount, from the first to the last."""
    layers, entered = [], schedule.tokens + schedule.prefix
    for _ in range(schedule.depth):
        left = schedule.left(amount) + schedule.prefix
        layers.append(LayerTrace(entered, left, amount > 0, rule=COVERAGE))
        entered, schedule = left, schedule.next()
    return layers


def amounts_for(
    cost: Callable[[float, float], float],
    share: float,
    tolerance: float = TOLERANCE,
    shapes: Sequence[float] = SHAPES,
) -> dict[float, float]:
    """For every shape that can cost this share of dense, the amount at which it does.

    Args:
        cost: share of dense at a shape and an amount.
        share: of dense.
        tolerance: in shares of dense.
        shapes: to choose from.

    Raises:
        RatioOutOfReach: with one token left in every layer the model still costs more than this share.
    """
    amounts, floor, start = {}, None, FIRST_TEMPERATURE
    for shape in shapes:
        try:
            start = calibrate(partial(cost, shape), share, start, tolerance, knob="amount")
        except RatioOutOfReach as error:
            floor = error
        else:
            amounts[shape] = start
    if not amounts:
        raise floor
    return amounts


def least_moved(moved: Mapping[float, float], share: float) -> float:
    """The shape at which a model that costs this share of dense answers most like the dense one, and a line about it.

    Args:
        moved: for every shape, how far the outputs are from the dense ones.
        share: of dense, for the line.
    """
    best = min(moved, key=moved.get)
    table = ", ".join(f"{shape:g}: {_ratio(value, moved[best]):.2f}" for shape, value in moved.items())
    logger.info(
        "schedule of shape %g at %.4g %% of dense; how far each moves the outputs: %s", best, 100 * share, table
    )
    return best


def _ratio(value: float, least: float) -> float:
    return value / least if least > 0 else (math.inf if value > 0 else 1.0)


def squared_distance(one: Tensor, other: Tensor) -> float:
    """Sum of squares, over all samples and numbers."""
    return float((one.double() - other.double()).square().sum())
