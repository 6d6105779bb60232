"""What the report says of fine-tuned models: seeds are averaged photo by photo before methods are compared."""

from collections.abc import Sequence
from itertools import product
from statistics import mean

from benchmarks.comparison.reporting import NONE, NOT_RUN, table
from benchmarks.comparison.statistics import Difference
from benchmarks.photos.cells import LESSONS, REFERENCE, STARTS
from benchmarks.photos.results import Results, lesson, score, score_name, title
from benchmarks.photos.world import TASKS


def averaged(records: Sequence[dict]) -> dict:
    """One record of several seeds: means of the cost, the scores and every photo's score; `runs` are the seeds' own."""
    (first, *_), names = records, records[0]["scores"]
    scores = {name: mean(one["scores"][name] for one in records) for name in names}
    photos = [mean(values) for values in zip(*(one["photos"] for one in records), strict=True)]
    percent = mean(one["percent"] for one in records)
    seeds = sorted(one["seed"] for one in records)
    return first | {"scores": scores, "photos": photos, "percent": percent, "seeds": seeds, "runs": records}


def at(results: Results, task: str, p: float) -> list[dict]:
    """The fine-tuned models of a cost, each over its seeds, the best first; p 0 is the dense model."""
    groups: dict[tuple, list[dict]] = {}
    for one in results.tuned.values():
        if (one["task"], one["p"]) == (task, p) and "scores" in one:
            groups.setdefault((one["rule"], one["schedule"], one["steps"], lesson(one)), []).append(one)
    return sorted(map(averaged, groups.values()), key=score, reverse=True)


def of(results: Results, like: dict, rule: str) -> dict | None:
    """The fine-tuned model of a rule at the cost of another one, or the dense one, trained as long; the best of it."""
    found = at(results, like["task"], 0.0 if rule == "dense" else like["p"])
    same = [one for one in found if (one["rule"], one["steps"]) == (rule, like["steps"])]
    alike = [one for one in same if rule == "dense" or lesson(one) == lesson(like)]
    return (alike or same or [None])[0]


def against(results: Results, ours: dict, theirs: dict | None) -> Difference | None:
    """The difference of two models over the seeds that both have; None where they share none."""
    seeds = set(ours["seeds"]) & set(theirs["seeds"]) if theirs else set()
    if not seeds:
        return None
    pair = [averaged([run for run in one["runs"] if run["seed"] in seeds]) for one in (ours, theirs)]
    return results.against(*pair)


def named(record: dict) -> str:
    """A record for readers, with what it learned by and where it began, where that is anything special."""
    name = title(record) if record.get("lesson", LESSONS[0]) == LESSONS[0] else f"{title(record)}, {record['lesson']}"
    return name if record.get("start", STARTS[0]) == STARTS[0] else f"{name}, from the trained dense model"


def finetuned(results: Results, task: str) -> str:
    """Every fine-tuned model of a task: what it costs, its score before and after, differences with their intervals."""
    rows = []
    for p in sorted({one["p"] for one in results.tuned.values() if one["task"] == task}):
        for one in at(results, task, p):
            before = results.of(task, one["rule"], one["schedule"], p)
            others = [None if one["rule"] == rule else of(results, one, rule) for rule in ("dense", REFERENCE)]
            gaps = [against(results, one, other) for other in others]
            rows.append(
                [
                    *(named(one), f"{one['percent']:.1f}", str(one["steps"]), ", ".join(map(str, one["seeds"]))),
                    *(NONE if before is None else f"{score(before):.1f}", f"{score(one):.1f}"),
                    *(NONE if gap is None else str(gap) for gap in gaps),
                ]
            )
    head = ["method", "% of GFLOPs", "steps", "seeds", f"{score_name(task)} before", "after"]
    return table([*head, "against dense", "against MADTP"], rows) if rows else "Not run."


def best_of(results: Results, task: str, p: float, rule: str) -> dict | None:
    """The model of a rule by its best schedule, fine-tuned by the task alone and as long as a dense one was."""
    lengths = {one["steps"] for one in at(results, task, 0.0)}
    found = (one for one in at(results, task, p) if (one["rule"], lesson(one)) == (rule, LESSONS[0]))
    return next((one for one in found if one["steps"] in lengths), None)


def tuned_gap(results: Results, task: str, p: str, rule: str, other: str) -> str:
    """The difference of two fine-tuned models, each by its best schedule, paired by photo, with its interval."""
    ours = best_of(results, task, float(p), rule)
    theirs = None if ours is None else of(results, ours, other)
    gap = None if ours is None else against(results, ours, theirs)
    return NOT_RUN if gap is None else str(gap)


def tuned_value(results: Results, task: str, p: str, rule: str) -> str:
    """The score of a fine-tuned model by its best schedule."""
    found = best_of(results, task, float(p), rule)
    return NOT_RUN if found is None else f"{score(found):.1f}"


def lesson_gap(results: Results, task: str, p: str, rule: str, schedule: str, *learned: str) -> str:
    """The difference of two models of a rule and schedule by what they learned by: LESSON STEPS LESSON STEPS."""
    wanted = [(rule, schedule, name, int(steps)) for name, steps in (learned[:2], learned[2:])]
    found = {(one["rule"], one["schedule"], lesson(one), one["steps"]): one for one in at(results, task, float(p))}
    if not found.keys() >= set(wanted):
        return NOT_RUN
    return str(against(results, *(found[one] for one in wanted)))


def on_the_way(results: Results, task: str, p: str, rule: str, schedule: str, learned: str, step: str) -> str:
    """The score on the first photos that a model had at a checkpoint, by what it learned by; the first of its seeds."""
    found = (
        one
        for one in at(results, task, float(p))
        if (one["rule"], one["schedule"], lesson(one)) == (rule, schedule, learned)
    )
    curve = {one["step"]: one["score"] for one in next(found, {}).get("curve", ())}
    return f"{curve[int(step)]:.1f}" if int(step) in curve else NOT_RUN


def comparisons(results: Results) -> int:
    """How many differences of fine-tuned models have an interval."""
    ratios = {one["p"] for one in results.tuned.values() if one["p"]}
    pruned = [one for task, p in product(TASKS, ratios) for one in at(results, task, p)]
    pairs = [(one, rule) for one in pruned for rule in ("dense", REFERENCE) if one["rule"] != rule]
    return sum(of(results, one, rule) is not None for one, rule in pairs)
