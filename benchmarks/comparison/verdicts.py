"""What a rule is beside its best rival, case by case: ahead, not below, undecided or behind, by one definition."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.comparison.reporting import cost_name, table
from benchmarks.comparison.statistics import Difference

MARGIN = 1.0  # points by which a method may be worse and still not be below
ORDER = AHEAD, NOT_BELOW, UNDECIDED, BEHIND = "ahead", "not below", "undecided", "behind"


class Case(NamedTuple):
    """A rule and its best rival at one cost of a task.

    Attributes:
        task: for readers.
        p: the share of the cost that is gone.
        tuned: whether both were fine-tuned.
        sides: both with their scores, and what else stands beside them, for readers.
        gap: by how much the rule is better.
        level: whether both score what the dense model does, so that nothing could be ahead.
    """

    task: str
    p: float
    tuned: bool
    sides: list[str]
    gap: Difference
    level: bool = False

    @property
    def place(self) -> tuple[str, float, bool]:
        """What is compared, whoever the rival is."""
        return self.task, self.p, self.tuned


def verdict(gap: Difference) -> str:
    """What an interval says: ahead, not below (by a point), behind, or nothing, as where there is none."""
    if gap.low > 0:
        return AHEAD
    return BEHIND if gap.high < 0 else NOT_BELOW if gap.low > -MARGIN else UNDECIDED


def case_by_case(cases: Iterable[Case], *sides: str) -> str:
    """A row for every case; `sides` head what stands beside each other in it."""
    rows = []
    for case in cases:
        known = [case.task, cost_name(case.p), "yes" if case.tuned else "no", *case.sides]
        rows.append([*known, str(case.gap), verdict(case.gap)])
    head = ["task", "cost", "fine-tuned", *sides, "difference", "coverage is"]
    return table(head, rows) if rows else "Not run."


def counted(cases: Iterable[Case]) -> str:
    """How often the rule is what, in words."""
    counts = Counter(verdict(case.gap) for case in cases)
    first, *others = (f"{name} in {counts[name]}" for name in ORDER)
    return f"{first} of {counts.total()} cases, {', '.join(others)}"


def at(cases: Iterable[Case], ratios: Sequence[str]) -> list[Case]:
    """The cases of some p, as a template names them; all where it names none."""
    asked = {float(p) for p in ratios}
    return [case for case in cases if not asked or case.p in asked]


def as_long(tuned: Sequence[dict]) -> list[dict]:
    """Of fine-tuned models those of as many steps as most have, so that sides compare."""
    steps = [one["steps"] for one in tuned]
    return [one for one in tuned if one["steps"] == max(steps, key=steps.count)]
