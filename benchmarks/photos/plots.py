"""The pictures of docs/photos.md."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.comparison.reporting import cost_name
from benchmarks.photos.cells import LESSONS, RULES, TAUGHT, TUNED, VARIANTS, title_of
from benchmarks.photos.results import Results, cell_of, lesson, score, score_name, task_name

MOST_SHOWN = ("dense", "image", "coverage", "tome")  # have the plainest colours
OTHERS = (rule for rule in RULES if rule not in (*MOST_SHOWN, *VARIANTS) and not rule.startswith(TAUGHT))
COLORS = dict(zip((*MOST_SHOWN, *OTHERS), ("black", *(f"C{number}" for number in range(10))), strict=False))
MARKS = {"even": "o", "geometric": "s", "front": "^", "madtp": "v", "searched": "*", "": "D"}  # of schedules
STEPS = 100  # that go without saying


def scores(results: Results, path: Path, task: str) -> str:
    """Score against cost: a line for each rule, the best of its schedules at every cost, and all of them as points."""
    figure, axis = plt.subplots(figsize=(9, 5.5))
    dense = results.dense(task)
    if dense is not None:
        axis.axhline(score(dense), color="black", linewidth=1, label="dense")
    records = [one for p in results.ratios(task) for one in results.at(task, p) if "scores" in one]
    for rule in dict.fromkeys(one["rule"] for one in records):
        own = [one for one in records if one["rule"] == rule]
        best = [max((one for one in own if one["p"] == p), key=score) for p in sorted({one["p"] for one in own})]
        (line,) = axis.plot(
            [one["percent"] for one in best],
            [score(one) for one in best],
            label=title_of(rule),
            linewidth=3 if rule == "coverage" else 1.2,
            **look_of(rule),
        )
        for one in own:
            axis.plot(
                one["percent"], score(one), MARKS[one["schedule"]], color=line.get_color(), markersize=5, alpha=0.6
            )
    for schedule in (schedule for schedule in MARKS if schedule in {one["schedule"] for one in records}):
        axis.plot([], [], MARKS[schedule], color="gray", markersize=5, label=schedule or "a schedule of its own")
    axis.set_xlabel("% of the sample's dense GFLOPs")
    axis.set_ylabel(score_name(task))
    shown = "score against cost, not fine-tuned; lines join each rule's best schedules"
    return finish(figure, path, f"{task_name(task)}: {shown}")


def tokens(results: Results, path: Path, task: str, p: str) -> str:
    """Tokens left after each layer at one cost: each rule by its best schedule, the best first, equal ones together."""
    figure, axis = plt.subplots(figsize=(9, 5.5))
    best: dict[str, dict] = {}
    for one in sorted((one for one in results.at(task, float(p)) if "scores" in one), key=score, reverse=True):
        best.setdefault(one["rule"], one)
    alike: dict[tuple[int, ...], list[dict]] = {}
    for one in best.values():
        alike.setdefault(tuple(map(round, one["tokens"])), []).append(one)
    for first, *others in alike.values():
        name = "; ".join(cell_of(one).title for one in (first, *others))
        layers = range(1, 1 + len(first["tokens"]))
        axis.plot(layers, first["tokens"], marker=".", label=name, alpha=0.8, **look_of(first["rule"]))
    axis.set_xlabel("layer")
    axis.set_ylabel("tokens left")
    axis.set_ylim(bottom=0)
    shown = "tokens left after each layer, every rule by its best schedule"
    return finish(figure, path, f"{task_name(task)} at {cost_name(float(p))}: {shown}")


def learning(results: Results, path: Path, task: str) -> str:
    """How models learn by the task under their rules: loss, and score of the first photos, by checkpoint."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    rules, costs = ["dense", *TUNED], {0.0: "-", 0.5: "-", 0.7: "--"}
    own = (one for one in results.tuned.values() if one["task"] == task and "curve" in one)
    for one in (one for one in own if lesson(one) == LESSONS[0] and one["rule"] in rules):
        name = ", ".join([cell_of(one).title, *([cost_name(one["p"])] if one["p"] else [])])
        name += f", seed {one['seed']}" if one["seed"] > 1 else ""
        name += f", {one['steps']} steps" if one["steps"] != STEPS else ""
        style = {"color": COLORS[one["rule"]], "linestyle": costs.get(one["p"], ":"), "label": name}
        style |= {"alpha": 1 / one["seed"], "fillstyle": "full" if one["steps"] == STEPS else "none"}
        for axis, shown in zip(axes, ("loss", "score"), strict=True):
            points = [(point["step"], point[shown]) for point in one["curve"] if shown in point]
            axis.plot(*zip(*points, strict=True), marker=MARKS[one["schedule"]], markersize=5, **style)
    for axis, shown in zip(axes, ("loss, mean since the last checkpoint", "score of the first photos"), strict=True):
        axis.set(xlabel="step", ylabel=shown)
    return finish(figure, path, f"{task_name(task)}: fine-tuning under the rules")


def look_of(rule: str) -> dict[str, str]:
    """One colour for a rule on every picture; variants of it are dashed."""
    own = rule.partition("_")[0] if rule in VARIANTS else rule.removeprefix(TAUGHT)
    return {"color": COLORS[own], "linestyle": "-" if own == rule else "--"}


def finish(figure, path: Path, title: str) -> str:
    """Puts a legend beside the last panel, saves the figure and returns its title."""
    *_, axis = figure.axes
    for each in figure.axes:
        each.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)
    return title


PLOTS = {"scores": scores, "tokens": tokens, "learning": learning}
