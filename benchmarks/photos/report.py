"""Turns the photos' results into docs/photos.md: the words come from a template, everything else from the results."""

import json
from pathlib import Path

from benchmarks.comparison.reporting import NONE, NOT_RUN, cost_name, named, table, write_page
from benchmarks.comparison.schedules import SHAPES
from benchmarks.comparison.verdicts import at, counted
from benchmarks.experiment import results as generated
from benchmarks.experiment import verdicts as of_generated
from benchmarks.photos import finetuned, plots
from benchmarks.photos.cells import RATIOS, REFERENCE, plan, title_of
from benchmarks.photos.reranking import SHORT_LIST
from benchmarks.photos.results import FURTHER, SCORE, Results, score, score_name, task_name, title
from benchmarks.photos.verdicts import against_the_best, judged, verdicts
from benchmarks.photos.world import ALL_TASKS, TASKS

FIXED = ("even", "geometric", "front")  # schedules that nobody searched for
WORDS = Path(__file__).parent / "words.md"
LONGER = "longer"  # folder of results of dense models that were trained for more epochs than the recipe's
AGAIN = "again"  # of a captioner that was trained for as many once more


def write_report(results: Path, docs: Path) -> None:
    """Writes photos.md and its plots."""
    found, command = Results(results, docs / "photos"), "python -m benchmarks.photos --task retrieval"
    write_page(docs / "photos.md", WORDS, BLOCKS, found, command)


def dense(results: Results) -> str:
    """The dense models that were run, and their image-free baselines."""
    rows = []
    for task in ALL_TASKS:
        if (record := results.dense(task)) is None:
            continue
        blind = results.blind(task)
        further = ", ".join(f"{name} {record['scores'][name]:.1f}" for name in FURTHER[task])
        without = NONE if blind is None else f"{blind:.1f}"
        rows.append([task_name(task), f"{score(record):.1f}", without, further, str(record["count"])])
    return table(["task", "score", "image-free baseline", "further scores", "photos"], rows) if rows else "Not run."


def curves(results: Results) -> str:
    """The learning curves of the dense models."""
    file = results.folder / "photos_dense.jsonl"
    if not file.exists():
        return "None was recorded."
    rows = []
    for one in map(json.loads, file.read_text().splitlines()):
        name = task_name(one["task"]) + (", image-free" if one["blind"] else "")
        rows.append([name, str(one["epoch"]), f"{one['loss']:.2f}", f"{one[SCORE[one['task']]]:.1f}"])
    return table(["model", "epoch", "loss", "score on validation"], rows)


def compared(results: Results, task: str, p: str) -> str:
    """Every cell of a cost: cost, score, what it is worth, and differences with their intervals; the best first."""
    rows, found = [], results.at(task, float(p))
    for one in sorted((one for one in found if "scores" in one), key=score, reverse=True):
        worth = results.worth(one)
        reference = None if one["rule"] == REFERENCE else results.reference(one)
        gaps = [results.against(one, results.dense(task)), results.against(one, reference)]
        rows.append(
            [
                *(title(one), f"{one['percent']:.1f}", f"{one['image_percent']:.1f}", f"{score(one):.1f}"),
                *(NONE if worth is None else f"{worth:.0f}", *(NONE if gap is None else str(gap) for gap in gaps)),
            ]
        )
    head = ["method", "% of GFLOPs", "of the image tower's", score_name(task), "% of dense over image-free"]
    shown = table([*head, "against dense", "against MADTP"], rows) if rows else "Not run."
    beyond = "; ".join(title(one) for one in found if "scores" not in one)
    return f"{shown}\n\nOut of reach: {beyond}." if beyond else shown


OURS, *RIVALS = ("coverage", "searched"), ("tome", "searched"), (REFERENCE, "none")  # each by what its search found
BESIDE = ["dense", "coverage", "ToMe", "MADTP", "coverage − ToMe", "coverage − MADTP"]


def beside(results: Results, task: str, p: str) -> list[str]:
    """The three rules at a cost beside the dense model, and by how much coverage is ahead; what `BESIDE` heads."""
    scores = [value(results, task, p, *one) for one in (OURS, *RIVALS)]
    ahead = [gap(results, task, p, *OURS, *rival) for rival in RIVALS]
    return [f"{score(results.dense(task)):.1f}", *scores, *ahead]


def beside_tuned(results: Results, task: str, p: str) -> list[str]:
    """The same of fine-tuned models, each by its best schedule."""
    dense = finetuned.tuned_value(results, task, "0", "dense")
    scores = [finetuned.tuned_value(results, task, p, rule) for rule, _ in (OURS, *RIVALS)]
    return [dense, *scores, *(finetuned.tuned_gap(results, task, p, OURS[0], rule) for rule, _ in RIVALS)]


def three_rules(results: Results, *tasks: str) -> str:
    """Coverage, ToMe and MADTP before and after fine-tuning, and by how much coverage is ahead.

    Of all tasks, unless some are named. The README shows the test split's as docs/photos.md does.
    """
    rows = []
    for task in tasks or TASKS:
        for p in results.ratios(task):
            for how, made in (("no", beside), ("yes", beside_tuned)):
                row = made(results, task, str(p))
                if {*row[1:4]} != {NOT_RUN}:
                    rows.append([f"{task_name(task)}, {score_name(task)}", cost_name(p), how, *row])
    return table(["task", "cost", "fine-tuned", *BESIDE], rows) if rows else "Not run."


def best(results: Results, task: str, p: str, rule: str) -> str:
    """The best score of a rule at a cost, by any schedule, and the share of dense that it is."""
    records = [one for one in results.at(task, float(p)) if one["rule"] == rule and "scores" in one]
    if not records or results.dense(task) is None:
        return NOT_RUN
    top = max(map(score, records))
    return f"{top:.1f} ({100 * top / score(results.dense(task)):.0f} % of dense)"


def cell(results: Results, task: str, p: str, rule: str, schedule: str) -> dict | None:
    """The record of a cell as the template names it, where a schedule may be none."""
    return results.of(task, rule, schedule.replace("none", ""), float(p))


def value(results: Results, task: str, p: str, rule: str, schedule: str = "none", name: str = "") -> str:
    """The score of one cell, or another one by name."""
    record = cell(results, task, p, rule, schedule)
    if record is None:
        return NOT_RUN
    if "scores" not in record:
        return "out of reach"
    return f"{record['scores'][name] if name else score(record):.1f}"


def gap(results: Results, task: str, p: str, rule: str, schedule: str, other: str, theirs: str = "none") -> str:
    """The difference of two cells of a cost, paired by photo, with its interval."""
    pair = [cell(results, task, p, *one) for one in ((rule, schedule), (other, theirs))]
    if None in pair:
        return NOT_RUN
    return str(results.against(*pair)) if all("photos" in one for one in pair) else NONE


def changed(results: Results, task: str, p: str, rule: str, schedule: str = "none") -> str:
    """The percentage of a cell's answers that differ from the dense model's."""
    record = cell(results, task, p, rule, schedule)
    return NOT_RUN if record is None or "changed" not in record else f"{record['changed']:.0f}"


def shapes(results: Results) -> str:
    """How many shapes a search compares."""
    return str(len(SHAPES))


def chosen(results: Results, *tasks: str) -> str:
    """Which shape of schedule the search without labels took for each rule and cost, beside the best of the others."""
    rows = []
    for task, p in [(name, ratio) for name in tasks for ratio in results.ratios(name)]:
        found = [one for one in results.at(task, p) if "scores" in one]
        for one in (one for one in found if "shape" in one):
            others = [other for other in found if other["rule"] == one["rule"] and other["schedule"] in FIXED]
            beside = [NONE, NONE]
            if others:
                top = max(others, key=score)
                beside = [f"{top['schedule']}, {score(top):.1f}", str(results.against(one, top))]
            rows.append(
                [task_name(task), title_of(one["rule"]), cost_name(p), one["shape"], f"{score(one):.1f}", *beside]
            )
    head = ["task", "method", "cost", "shape found", "its score", "best fixed schedule that was run", "difference"]
    return table(head, rows) if rows else "Not run."


def short_list(results: Results) -> str:
    """How many candidates the captioner judges."""
    return str(SHORT_LIST)


def comparisons(results: Results) -> str:
    """How many differences have an interval, on both splits, of the models that were trained for longer too."""
    models = [results, within(results, LONGER), within(results, AGAIN)]
    return str(sum(found.comparisons + finetuned.comparisons(found) for found in [*models, *map(tested, models)]))


def missing(results: Results) -> str:
    """How much of the plan was run at every cost, and by which rules."""
    rows, ratios = [], sorted(RATIOS)
    for task in TASKS:
        planned = [[cell for cell in plan(task, "val", ratios=[p]) if cell.p == p] for p in ratios]
        ran = [[cell for cell in cells if cell.name in results.known] for cells in planned]
        rules = dict.fromkeys(title_of(cell.rule) for cells in ran for cell in cells)
        shares = [f"{len(some)} of {len(cells)}" for some, cells in zip(ran, planned, strict=True)]
        rows.append([task_name(task), *shares, "; ".join(rules) or "none"])
    return table(["task", *map(cost_name, ratios), "of these methods"], rows)


def tested(results: Results) -> Results:
    """The same on the test split."""
    return Results(results.folder, results.pictures, final=True)


def every_cell(results: Results) -> str:
    """The tables of every task and cost, not fine-tuned and fine-tuned."""
    blocks = []
    for task in ALL_TASKS:
        for p in results.ratios(task):
            blocks.append(f"{task_name(task)} at {cost_name(p)}:\n\n{compared(results, task, str(p))}")
        if any(one["task"] == task for one in results.tuned.values()):
            blocks.append(f"{task_name(task)}, fine-tuned:\n\n{finetuned.finetuned(results, task)}")
    return "\n\n".join(blocks) or "Not scored yet: `python -m benchmarks.photos --task retrieval --final`."


def on_test(results: Results, block: str, *arguments: str) -> str:
    """Another block, of the test split."""
    return BLOCKS[block](tested(results), *arguments)


def longer(results: Results, block: str, *arguments: str) -> str:
    """Another block, of the dense models that were trained for longer."""
    return BLOCKS[block](within(results, LONGER), *arguments)


def again(results: Results, block: str, *arguments: str) -> str:
    """Another block, of the captioner that was trained for longer once more."""
    return BLOCKS[block](within(results, AGAIN), *arguments)


def within(results: Results, name: str) -> Results:
    """What other dense models were asked, whose results lie in a folder of their own."""
    return Results(results.folder / name, results.pictures)


def together(results: Results, *ratios: str) -> str:
    """What coverage is at some p, on generated pictures and by the models that were trained for longer on photos."""
    pictures = of_generated.judged(generated.Results(results.folder, results.pictures))
    return counted(at([*judged(within(results, LONGER)), *pictures], ratios))


def machines(results: Results) -> str:
    """Where and when the results were made."""
    records = [*results.known.values(), *results.tuned.values()]
    made = sorted({(one.get("device", one["cpu"]), one["precision"], one["versions"]["torch"]) for one in records})
    dates = sorted(one["date"] for one in records)
    names = "; ".join(f"{cpu}, {precision}, torch {torch}" for cpu, precision, torch in made)
    return f"{len(records)} configurations, {dates[0]} to {dates[-1]}: {names}"


def plot(results: Results, name: str, *arguments: str) -> str:
    """Draws a picture and shows it."""
    file = f"{'_'.join([name, *arguments])}.png"
    title = plots.PLOTS[name](results, results.pictures / file, *arguments)
    return f"![{title}](photos/{file})"


BLOCKS = named(  # what the template may ask for
    *(dense, curves, three_rules, compared, every_cell, best, value, gap, changed, chosen, shapes, short_list),
    *(against_the_best, verdicts, together, comparisons, missing, machines, plot, longer, again, on_test),
    *(finetuned.finetuned, finetuned.tuned_value, finetuned.tuned_gap, finetuned.lesson_gap, finetuned.on_the_way),
)
