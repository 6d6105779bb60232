"""Coverage against the best rival of every task and cost: ahead, not below, undecided or behind, by one rule."""

from collections import Counter
from collections.abc import Sequence

from benchmarks.comparison.reporting import cost_name, table
from benchmarks.comparison.statistics import Difference
from benchmarks.photos import finetuned
from benchmarks.photos.cells import LESSONS, VARIANTS
from benchmarks.photos.results import Results, lesson, score, score_name, task_name
from benchmarks.photos.world import TASKS
from madtp.method.rules import COVERAGE

MARGIN = 1.0  # points by which a method may be worse and still not be below


def verdict(gap: Difference) -> str:
    """What an interval says: ahead, not below (by a point), behind, or nothing."""
    if gap.low > 0:
        return "ahead"
    return "behind" if gap.high < 0 else "not below" if gap.low > -MARGIN else "undecided"


def against_the_best(results: Results) -> str:
    """A row for every task and cost, not fine-tuned and fine-tuned; each side by its best on validation."""
    rows = [[*names, *sides, str(gap), verdict(gap)] for names, sides, gap in judged(results)]
    head = ["task", "cost", "fine-tuned", "coverage", "best rival", "difference", "coverage is"]
    return table(head, rows) if rows else "Not run."


def verdicts(results: Results) -> str:
    """How often coverage is what, in words."""
    counts = Counter(verdict(gap) for *_, gap in judged(results))
    first, *others = (f"{name} in {counts[name]}" for name in ("ahead", "not below", "undecided", "behind"))
    return f"{first} of {counts.total()} cases, {', '.join(others)}"


def judged(results: Results) -> list[tuple[list[str], list[str], Difference]]:
    """Task, cost and training; both sides with their scores; and their difference, wherever both were run."""
    found = []
    for task in TASKS:
        for p in results.ratios(task):
            untuned = [one for one in results.at(task, p) if "scores" in one]
            tuned = [one for one in finetuned.at(results, task, p) if lesson(one) == LESSONS[0]]
            for how, known in (("no", untuned), ("yes", as_long(tuned))):
                ours = max((one for one in known if one["rule"] == COVERAGE), key=score, default=None)
                rivals = (one for one in known if one["rule"] not in (COVERAGE, *VARIANTS))
                rival = max(rivals, key=score, default=None)
                if ours is None or rival is None:
                    continue
                gap = finetuned.against(results, ours, rival) if how == "yes" else results.against(ours, rival)
                sides = [f"{finetuned.named(one)}, {score(one):.1f}" for one in (ours, rival)]
                found.append(([f"{task_name(task)}, {score_name(task)}", cost_name(p), how], sides, gap))
    return found


def as_long(tuned: Sequence[dict]) -> list[dict]:
    """Of fine-tuned models those of as many steps as most have, so that sides compare."""
    steps = [one["steps"] for one in tuned]
    return [one for one in tuned if one["steps"] == max(steps, key=steps.count)]
