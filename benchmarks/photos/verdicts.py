"""Coverage against the best rival of every task and cost on photos, either with lengths kept or not."""

from collections.abc import Sequence

from benchmarks.comparison.verdicts import Case, as_long, case_by_case, counted
from benchmarks.photos import finetuned
from benchmarks.photos.cells import BY_TEXT, COUNTED, LENGTHENED, LESSONS
from benchmarks.photos.results import Results, lesson, score, score_name, task_name
from benchmarks.photos.world import TASKS
from madtp.method.rules import COVERAGE

OURS = (COVERAGE, LENGTHENED)  # what the library has


def against_the_best(results: Results) -> str:
    """A row for every task and cost, not fine-tuned and fine-tuned; each side by its best on validation."""
    return case_by_case(judged(results), "coverage", "best rival")


def verdicts(results: Results, *tasks: str) -> str:
    """How often coverage is what, in words; in all tasks, unless some are named."""
    return counted(judged(results, tasks or TASKS))


def judged(results: Results, tasks: Sequence[str] = TASKS) -> list[Case]:
    """Both sides and their difference, wherever both were run."""
    found = []
    for task in tasks:
        for p in results.ratios(task):
            untuned = [one for one in results.at(task, p) if "scores" in one]
            tuned = [one for one in finetuned.at(results, task, p) if lesson(one) == LESSONS[0]]
            for is_tuned, known in ((False, untuned), (True, as_long(tuned))):
                ours = max((one for one in known if one["rule"] in OURS), key=score, default=None)
                rivals = (one for one in known if one["rule"] not in (*OURS, COUNTED, BY_TEXT))
                rival = max(rivals, key=score, default=None)
                if ours is None or rival is None:
                    continue
                gap = finetuned.against(results, ours, rival) if is_tuned else results.against(ours, rival)
                sides = [f"{finetuned.named(one)}, {score(one):.1f}" for one in (ours, rival)]
                found.append(Case(f"{task_name(task)}, {score_name(task)}", p, is_tuned, sides, gap))
    return found
