"""The temperature controller: which T makes the model cost 1 - p of its dense GFLOPs.

T also stands for the amount of a rule that has no temperature: both run from 0, dense, to infinity.

Costs are shares of dense: 1.0 is the dense model. `cost(temperature)` measures one, on every process alike, so that all
processes walk the same path. A controller is asked twice an epoch: before it, for the T to train with, and after it,
when the weights have moved, for the T to evaluate and save with.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from madtp.method.errors import UserError

TOLERANCE = 0.005  # of dense
FIRST_TEMPERATURE = 1.0
LOWEST, HIGHEST = 1e-5, 1e9  # beyond these nothing changes any more
RESOLUTION = 1.001  # closer than this, two temperatures stand on the two sides of a step of the cost

CostAt = Callable[[float], float]

logger = logging.getLogger(__name__)


class RatioOutOfReach(UserError):
    """The model cannot be pruned this far: at any temperature a layer drops little more than half of its tokens."""


def target(epoch: int, epochs: int, p: float, ramp: float) -> float:
    """The share of dense to reach in `epoch` (from 0): from dense to 1 - p over the first `ramp` of the epochs.

    The first epoch already takes one step of the way; `ramp` 0 asks for all of p at once.
    """
    return 1 - p * (min(1.0, (epoch + 1) / (ramp * epochs)) if ramp > 0 else 1.0)


def calibrate(
    cost: CostAt,
    target: float,
    start: float,
    tolerance: float = TOLERANCE,
    slack: float = 0.0,
    evaluations: int = 24,
    knob: str = "temperature",
) -> float:
    """Searches the temperature whose cost is `target`: multiplicative bracket, then bisection in log T.

    The cost falls as T rises, in steps and not quite monotonically: bisection follows one crossing of the target and
    stops at the first temperature within the tolerance, or when the bracket has closed on a step.

    Args:
        cost: share of dense at a temperature; asked at most `evaluations` times, each temperature once.
        target: share of dense.
        start: where to begin, above 0; the last epoch's temperature is a few evaluations from the next.
        tolerance: in shares of dense.
        slack: how far beyond the ceiling the target may lie; it is then moved onto the ceiling.
        evaluations: what the search may spend.
        knob: what people call that which is searched.

    Returns:
        The temperature seen whose cost is closest to the target. If none is within the tolerance: the closest of those
        at or below the target, or else of all.

    Raises:
        RatioOutOfReach: even T without bound costs more than the target.
    """
    seen: dict[float, float] = {}
    low = high = ceiling = None
    temperature, factor = min(max(start, LOWEST), HIGHEST), 2.0
    while len(seen) + (ceiling is not None) < evaluations and LOWEST <= temperature <= HIGHEST:
        seen[temperature] = cost(temperature)
        if abs(seen[temperature] - target) <= tolerance:
            return temperature
        if seen[temperature] > target:
            low = temperature
        else:
            high = temperature
        if low and high and high / low < RESOLUTION:
            break
        if high is None and len(seen) == 2 < evaluations:
            ceiling = cost(math.inf)
            target = _reachable(ceiling, target, tolerance, slack)
        temperature, factor = _next(low, high, factor), 4.0
    closest = min(seen, key=lambda t: (seen[t] > target, abs(seen[t] - target)))
    found = knob, 100 * target, knob, closest, 100 * seen[closest], "" if low else ", and a lower one hardly more"
    logger.warning("no %s found that costs %.1f %% of dense; %s %.4g costs %.1f %%%s", *found)
    return closest


def _next(low: float | None, high: float | None, factor: float) -> float:
    """The middle of a bracket in log T, or one step further where a side is still open."""
    if high is None:
        return low * factor
    return high / factor if low is None else math.sqrt(low * high)


def _reachable(ceiling: float, target: float, tolerance: float, slack: float) -> float:
    """The target, or the ceiling where that is dearer by no more than the slack."""
    if ceiling > target + tolerance + slack:
        most = math.floor(1000 * (1 - ceiling)) / 1000
        way_out = f"so p can be at most {most:.3g}; lower p" if most > 0 else "pruning spends more than it saves"
        raise RatioOutOfReach(
            f"p {1 - target:.3g} is out of reach: pruned as far as it goes this model still costs "
            f"{100 * ceiling:.1f} % of dense, {way_out}"
        )
    if ceiling <= target + tolerance:
        return target
    logger.warning("nothing reaches %.1f %% of dense now; aiming at the least, %.1f %%", 100 * target, 100 * ceiling)
    return ceiling


class Controller(ABC):
    """Decides T for every epoch; T itself is the only state, so a run resumes from it.

    Attributes:
        prunes: whether T is ever above 0.
    """

    prunes = True

    def target(self, epoch: int) -> float | None:
        """The share of dense that `epoch` aims at, None where nothing is aimed at."""
        return None

    @abstractmethod
    def before_epoch(self, cost: CostAt, epoch: int, temperature: float | None) -> float:
        """The temperature to train `epoch` with; `temperature` is the last one, None in a new run."""

    def after_epoch(self, cost: CostAt, epoch: int, temperature: float) -> float:
        """The temperature to evaluate and save with, for the weights as they are now."""
        return temperature


@dataclass(frozen=True)
class Fixed(Controller):
    """One temperature for the whole run; 0 is the dense model."""

    temperature: float

    @property
    def prunes(self) -> bool:
        return self.temperature > 0

    def before_epoch(self, cost: CostAt, epoch: int, temperature: float | None) -> float:
        return self.temperature


@dataclass(frozen=True)
class ClosedLoop(Controller):
    """Searches T before and after every epoch, so that what is saved costs what was asked of this epoch.

    Attributes:
        p: the share of dense to remove in the end.
        epochs: of the run.
        ramp: share of the epochs over which the target falls to 1 - p.
        slack: how far the ceiling may drift above the target, while the weights move, before the run stops.
        knob: what people call that which is searched.
    """

    p: float
    epochs: int
    ramp: float
    slack: float
    knob: str = field(default="temperature", repr=False)

    def target(self, epoch: int) -> float:
        return target(epoch, self.epochs, self.p, self.ramp)

    def before_epoch(self, cost: CostAt, epoch: int, temperature: float | None) -> float:
        if temperature is None:  # a p out of reach is refused before anything is trained, not when the ramp arrives
            _reachable(cost(math.inf), 1 - self.p, TOLERANCE, slack=0.0)
            temperature = FIRST_TEMPERATURE
        return self.after_epoch(cost, epoch, temperature)

    def after_epoch(self, cost: CostAt, epoch: int, temperature: float) -> float:
        return calibrate(cost, self.target(epoch), temperature, slack=self.slack, knob=self.knob)


@dataclass(frozen=True)
class Recipe:
    """A released ladder.

    Attributes:
        steps: (gap, step), widest gap first: a gap wider than this moves T by the step.
        otherwise: the step of a smaller gap.
        dense: GFLOPs of the paper's model, in which the gaps are given.
        first: the first epoch's T.
    """

    steps: tuple[tuple[float, float], ...]
    otherwise: float
    dense: float
    first: float = 1.0


_CAPTION_STEPS = ((50, 0.5), (30, 0.3), (20, 0.2), (10, 0.1), (5, 0.05), (2, 0.02))
RECIPES = {
    "nlvr": Recipe(((30, 1.0), (10, 0.5), (5, 0.25), (1, 0.1)), 0.01, dense=132.540715),
    "caption": Recipe(_CAPTION_STEPS, 0.01, dense=65.719562),
    "vqa": Recipe(((50, 0.25), (30, 0.15), (10, 0.1), (5, 0.05), (2, 0.01)), 0.0, dense=186.121346, first=0.5),
    "retrieval": Recipe(_CAPTION_STEPS, 0.01, dense=153.2),
    "retrieval_clip": Recipe(_CAPTION_STEPS, 0.01, dense=395.7),
}


@dataclass(frozen=True)
class Ladder(Controller):
    """The released recipe: T moves once per epoch, by a step that depends on the gap to the target."""

    p: float
    recipe: Recipe

    def target(self, epoch: int) -> float:
        return 1 - self.p

    def before_epoch(self, cost: CostAt, epoch: int, temperature: float | None) -> float:
        if temperature is None:
            return self.recipe.first
        return max(temperature + self.step(cost(temperature)), LOWEST)

    def step(self, share: float) -> float:
        """How far T moves for a model that costs this share of dense.

        The gap is taken in shares of dense and read in GFLOPs of the paper's model, so that it means the same for any
        size of model.
        """
        gap = (share - (1 - self.p)) * self.recipe.dense
        size = next((step for width, step in self.recipe.steps if abs(gap) > width), self.recipe.otherwise)
        return math.copysign(size, gap)
