"""Verdicts: the interval of three seeds, and what is counted."""

from math import sqrt
from statistics import stdev

import numpy as np
import pytest

from benchmarks.comparison.statistics import Difference, difference_by_seed
from benchmarks.comparison.verdicts import Case, as_long, at, counted, verdict


@pytest.mark.parametrize(
    "gap, said",
    [((0.5, 0.1, 1), "ahead"), ((0.5, -0.9, 2), "not below"), ((0, -1.1, 1), "undecided"), ((-1, -2, -0.1), "behind")],
)
def test_a_verdict_goes_by_the_interval_alone(gap, said):
    assert verdict(Difference(*gap)) == said


def test_three_seeds_have_the_interval_of_student():
    """The quantile holds 95 % of a density that is integrated here; swapped sides mirror the interval."""
    ours, theirs = [90.0, 84.0, 71.0], [88.0, 85.0, 65.0]
    found, mirrored = difference_by_seed(ours, theirs), difference_by_seed(theirs, ours)
    differences = np.subtract(ours, theirs)
    quantile = (found.high - found.low) / 2 / (stdev(differences) / sqrt(3))
    t = np.linspace(-quantile, quantile, 100_001)
    assert 2 * quantile * np.mean((2 + t**2) ** -1.5) == pytest.approx(0.95, abs=1e-4)
    assert quantile == pytest.approx(4.303, abs=1e-3) and found.value == pytest.approx(differences.mean())
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_nineteen_of_twenty_intervals_hold_the_truth():
    drawn = 5 + 2 * np.random.default_rng(0).standard_normal((4000, 3))
    found = [difference_by_seed(row, [0.0] * 3) for row in drawn]
    assert np.mean([gap.low <= 5 <= gap.high for gap in found]) == pytest.approx(0.95, abs=0.01)


def test_fewer_seeds_have_no_interval_and_decide_nothing():
    for ours, theirs in (([99.0], [1.0]), ([99.0, 98.0], [1.0, 2.0]), ([1.0], [99.0])):
        gap = difference_by_seed(ours, theirs)
        assert not gap.bounded and verdict(gap) == "undecided"
    assert str(difference_by_seed([99.0], [90.0])) == "+9.0 (no interval)"
    for seeds in (0, 4):
        with pytest.raises(ValueError, match=f"of 1 to 3 seeds, not of {seeds}"):
            difference_by_seed([1.0] * seeds, [0.0] * seeds)


def test_cases_are_counted_at_the_costs_asked_for_and_each_once():
    gaps = {0.5: Difference(1, 0.5, 2), 0.3: Difference(-1, -2, -0.5), 0.7: Difference(0, -3, 3)}
    cases = [Case("a", p, False, [], gap) for p, gap in gaps.items()]
    assert counted(at(cases, ["0.5", "0.3"])) == "ahead in 1 of 2 cases, not below in 0, undecided in 0, behind in 1"
    assert at(cases, []) == cases and as_long([]) == []
    assert as_long([{"steps": 100}, {"steps": 400}, {"steps": 100}]) == [{"steps": 100}] * 2
