"""Schedules: which share of the tokens is left after each layer, given an amount that says how much goes.

Every one is a function `(layer, amount) -> share`, layers counted from 0; an amount of 0 keeps everything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from madtp.method.layout import Rectangle

Schedule = Callable[[int, float], float]


def even(layer: int, amount: float) -> float:
    """Every layer drops equally many, `amount` of those that entered the first."""
    return 1 - amount * (layer + 1)


def geometric(layer: int, amount: float) -> float:
    """Every layer drops the same share of what enters it."""
    return max(0.0, 1 - amount) ** (layer + 1)


def front(layer: int, amount: float) -> float:
    """Half of the way in the first layer, a quarter each in the next two, nothing after that: about MADTP's own."""
    return max(0.0, 1 - amount) ** min(1.0, (layer + 2) / 4)


def power(exponent: float) -> Schedule:
    """What has gone grows with a power of the depth: below 1 it goes early, above 1 late; 1 is even."""
    return lambda layer, amount: 1 - amount * (layer + 1) ** exponent


def like(shares: Sequence[float]) -> Schedule:
    """The shares that another method left, layer by layer; an amount of 1 is exactly these."""
    return lambda layer, amount: shares[layer] ** amount


SHAPES: dict[str, Schedule] = {
    "even": even,
    "geometric": geometric,
    "front": front,
    **{f"power {exponent:g}": power(exponent) for exponent in (0.15, 0.25, 0.35, 0.5, 0.7, 1.5, 2.5)},
}


@dataclass(frozen=True)
class Steps:
    """A schedule on its way through a tower, as `madtp.method.merged.Merged` asks for one.

    Attributes:
        schedule: its amount is the knob.
        tokens: N of the first layer.
        layer: the layer that prunes next.
        keep_norm: whether merged tokens are as long as what they stand for.
        prefix: tokens in front that always stay: the class token.
        class_token: that there is one.
    """

    schedule: Schedule
    tokens: int
    layer: int = 0
    keep_norm: bool = False
    prefix: ClassVar[int] = 1
    class_token: ClassVar[bool] = True

    def left(self, amount: float) -> int:
        """How many of the N tokens this layer leaves, 1 at least; what is rounded off is made up for in later ones."""
        share = min(1.0, max(0.0, self.schedule(self.layer, amount)))
        return max(1, self.tokens - round(self.tokens * (1 - share)))

    def next(self) -> "Steps":
        """The same at the next layer."""
        return replace(self, layer=self.layer + 1)


class Scheduled(Rectangle):
    """Leaves after each layer what a schedule says, the same for every sample.

    Args:
        steps: the schedule, and where in the tower it is.
    """

    def __init__(self, steps: Steps):
        self.steps = steps

    @classmethod
    def by(cls, schedule: Schedule, *rule: object) -> Callable[[Tensor], "Scheduled"]:
        """Makes the layout of tokens [B, L, D] that enter the first layer."""
        return lambda x: cls(Steps(schedule, x.shape[1] - 1), *rule)
