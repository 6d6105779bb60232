"""Verdicts: the interval of three seeds, the choice of the best rival, and what is counted."""

import json
import re
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from benchmarks.comparison.methods import METHODS, VARIANTS
from benchmarks.comparison.statistics import Difference, difference_by_seed
from benchmarks.comparison.verdicts import ORDER, Case, as_long, at, counted, verdict
from benchmarks.experiment import report, verdicts
from benchmarks.experiment.results import NAMES, Results, final
from benchmarks.photos import report as photos
from benchmarks.photos.results import Results as Photos

KEPT = Path(__file__).parents[2] / "benchmarks/results"


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


@pytest.fixture
def known(tmp_path):
    """Writes scores of seeds, NLVR2 at half the cost: {method: scores}, None is out of reach; then reads them."""

    def write(tuned, val=(), test=(), steps=()):
        files = {"nlvr": [], "untuned": [], "untuned_final": []}

        def add(file, method, seed, outcome):
            p = 0.0 if method == "dense" else 0.5
            line = {"name": f"{method}{seed}", "task": "nlvr", "method": method, "p": p, "seed": seed}
            files[file].append(line | outcome)

        for file, given in (("nlvr", tuned), ("untuned", dict(val)), ("untuned_final", dict(test))):
            for method, scores in given.items():
                for seed, score in enumerate(scores, 1):
                    outcome = {"untuned": {"score": score}} if score is not None else {"out_of_reach": "."}
                    if file == "nlvr" and score is not None:
                        before = {} if method == "dense" else {"untuned": {"score": score - 50}}
                        outcome = {"scores": {"32": {"score": score}}, "steps": dict(steps).get(method, 100)} | before
                    add(file, method, seed, outcome)
        for file, lines in files.items():
            (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Results(tmp_path, tmp_path)

    return write


def rows(shown):
    return [row.strip("| ").split(" | ") for row in shown.splitlines()[2:]]


def test_the_best_rival_loses_least_against_the_dense_models_of_its_own_seeds(known):
    """A rival of one easy seed has the highest mean, and loses most; what trained for longer is none."""
    tuned = {"dense": [100, 90, 80], "coverage": [99, 89, 79], "madtp": [90, 81, 74], "tome": [91, None, None]}
    tuned |= {"madtp_long": [99, 99, 99], "coverage_counts": [99, 99, 99]}
    found = known(tuned, steps={"madtp_long": 400})
    (*_, after) = rows(verdicts.against_the_best(found))
    gap = difference_by_seed([99, 89, 79], [90, 81, 74])
    assert after == ["NLVR2", "50 %", "yes", "90.0", "89.0", "MADTP, 81.7", str(gap), "ahead"]
    assert rows(verdicts.of_all_seeds(found)) == []


def test_a_rival_of_one_seed_is_compared_there_and_the_next_of_all_seeds_stands_below(known):
    tuned = {"dense": [100, 90, 80], "coverage": [99, 89, 79], "unguided": [90, 81, 74], "madtp": [None, 88, None]}
    found = known(tuned)
    shown, below = (rows(made)[-1] for made in (verdicts.against_the_best(found), verdicts.of_all_seeds(found)))
    assert shown[3:] == ["90.0", "89.0", "MADTP, 88.0 (1 of 3 seeds)", "+1.0 (no interval)", "undecided"]
    assert below[3:6] == ["90.0", "89.0", "MADTP without guidance, 81.7"] and below[-1] == "ahead"
    assert verdicts.too_wide(found) == "0 of 2", "want of seeds is no wide interval"


def test_models_as_they_are_choose_on_validation_and_are_compared_on_test(known):
    dense = {"dense": [100, 90, 80]}
    tuned = dense | {"coverage": [99, 89, 79], "tome": [140, 130, 120]}  # as it is 90, 80, 70: scored on test alone
    val = dense | {"coverage": [100, 90, 80], "madtp": [70, 60, 50], "sample": [95, 85, 75]}
    test = dense | {"coverage": [100, 88, 80], "madtp": [99, 89, 79], "sample": [92, 80, 72]}
    before, _ = rows(verdicts.against_the_best(known(tuned, val, test)))
    gap = difference_by_seed([100, 88, 80], [92, 80, 72])
    assert before[3:] == ["90.0", "89.3", "MADTP, kept per sample, 81.3", str(gap), "ahead"]
    before, _ = rows(verdicts.against_the_best(known(tuned, val, {one: test[one] for one in ("dense", "coverage")})))
    assert before[5] == "MADTP, kept per sample, 85.0", "on validation, where both are"


def test_of_equals_the_rival_of_more_seeds_is_compared(known):
    found = known({"dense": [90] * 3, "tome": [88, None, None], "madtp": [88] * 3, "coverage": [88] * 3})
    assert rows(verdicts.against_the_best(found))[-1][5] == "MADTP, 88.0"


def test_seeds_beyond_those_of_the_experiment_are_left_out(known):
    more = known({"dense": [90] * 4, "coverage": [89, 89, 88, 10], "madtp": [80, 81, 82, 90]})
    usual = known({"dense": [90] * 3, "coverage": [89, 89, 88], "madtp": [80, 81, 82]})
    assert verdicts.against_the_best(more) == verdicts.against_the_best(usual)


def test_nothing_can_be_ahead_where_both_score_as_the_dense_models(known):
    found = known({"dense": [90] * 3, "coverage": [89.5] * 3, "madtp": [89.1, 89.1, 89.3]})
    assert verdicts.level(found, "0.5") == "1 of 2" and verdicts.level(found, "0.7") == "0 of 0"
    assert verdicts.level(known({"dense": [90] * 3, "coverage": [89.5] * 3, "madtp": [89] * 3})) == "0 of 2"
    wide = known({"dense": [90] * 3, "coverage": [89.5] * 3, "madtp": [89, 88, 92]})
    assert verdicts.too_wide(wide) == "2 of 2"


def test_fine_tuned_cases_are_what_one_by_one_finds():
    """Every method of the kept lines, seed by seed."""
    found = Results(KEPT, KEPT)
    shown = {(case.task, case.p): case for case in verdicts.judged(found) if case.tuned}
    assert len(shown) == 9
    for task, p in ((task, p) for task in NAMES for p in (0.3, 0.5, 0.7)):
        ours, whole = (
            {s: final(r)["score"] for s, r in found.of(task, *one).items()} for one in (("coverage", p), ("dense", 0.0))
        )
        losses = {}
        for method in METHODS.keys() - {"coverage", *VARIANTS}:
            if METHODS[method].longer == 1 and (theirs := found.of(task, method, p)):
                losses[method] = mean(whole[seed] - final(record)["score"] for seed, record in theirs.items())
        rival = min(losses, key=losses.get)
        case, of_rival = shown[NAMES[task], p], found.of(task, rival, p)
        assert METHODS[rival].title in case.sides[2] and case.gap.bounded == (len(of_rival) == 3)
        assert case.gap.value == pytest.approx(mean(ours[s] - final(r)["score"] for s, r in of_rival.items()))
        assert report.gap(found, task, "coverage", str(p), rival).startswith(f"{case.gap.value:+.1f}".replace("-", "−"))


def test_both_worlds_together_are_the_sum_of_them():
    usual = Photos(KEPT, KEPT)
    said = [photos.longer(usual, "verdicts"), verdicts.verdicts(Results(KEPT, KEPT)), photos.together(usual)]
    one, other, both = ([int(n) for n in re.findall(r"\d+", text)] for text in said)
    assert len(both) == len(ORDER) + 1 and both == [a + b for a, b in zip(one, other, strict=True)]
    half, low, asked = (int(photos.together(usual, *p).split()[4]) for p in (["0.5"], ["0.7"], ["0.5", "0.7"]))
    assert half + low == asked < both[1]
