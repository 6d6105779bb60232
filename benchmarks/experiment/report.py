"""Turns results into docs/results.md: the words come from a template, everything else from the results.

In the template `{name argument ...}` stands for what the function `name` below makes of the results.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import mean

from benchmarks.comparison.methods import ABLATED, COMPARED, METHODS, TOWERS
from benchmarks.comparison.reporting import NONE, NOT_RUN, cost_name, named, table, write_page
from benchmarks.experiment import plots
from benchmarks.experiment.cells import BATCH, TASKS
from benchmarks.experiment.ledger import ABLATED_AT, SEEDS, plan
from benchmarks.experiment.results import NAMES, Results, column, costs, final, scores, speed, spread
from benchmarks.experiment.running import BATCHES, FACTORS, SCORE
from benchmarks.experiment.verdicts import against_the_best, level, of_all_seeds, too_wide, verdicts
from madtp.look.paper import POINTS

WORDS = Path(__file__).parent / "words.md"
REFERENCE = "madtp"
OUT = "out of reach"
ALLOWED = 0.01  # of the cost asked for
KEPT = {
    "madtp": (TOWERS, "`batch`"),
    "sample": (TOWERS, "`sample`"),
    "image": (("image",), "`batch`"),
    "sample_image": (("image",), "`sample`"),
}  # what is pruned where the task has it, and by which rule


def write_report(results: Path, docs: Path) -> None:
    """Writes results.md and its plots."""
    found, command = Results(results, docs / "results"), "python -m benchmarks.experiment --task nlvr"
    write_page(docs / "results.md", WORDS, BLOCKS, found, command)


def compared(results: Results, task: str, p: str) -> str:
    """Every method at one cost, as far as it was run."""
    dense = results.of(task, "dense", 0.0)
    rows = [["dense", "100", scores(dense), "", "", speed(dense)], *lines(results, task, COMPARED, float(p))]
    head = ["method", "% of dense GFLOPs", METRIC[task], "against MADTP", "not fine-tuned", "samples/s"]
    return table(head, rows)


def overview(results: Results, *ratios: str) -> str:
    """MADTP's score, and the difference to it of the others that were run, for every task and cost."""
    columns = list(product(TASKS, ratios))
    rows = [[METHODS[REFERENCE].title, *(score(results, task, REFERENCE, p) for task, p in columns)]]
    others = differences(results, [method for method in COMPARED if method != REFERENCE], columns)
    rows += [row for row in others if {*row[1:]} != {NONE}]
    return table(["", *(column(task, float(p)) for task, p in columns)], rows)


def ablations(results: Results, *tasks: str) -> str:
    """MADTP with parts replaced: the difference to it, for every task, at one cost."""
    columns = [(task, str(ABLATED_AT)) for task in tasks]
    return table(["", *(NAMES[task] for task in tasks)], differences(results, ABLATED, columns))


def differences(results: Results, methods: Iterable[str], columns: list[tuple[str, str]]) -> list[list[str]]:
    """Of each method its title, and for each task and p its difference to MADTP: on how many seeds, if not on all."""

    def cell(task: str, method: str, p: str) -> str:
        ours, failed = results.of(task, method, float(p)), results.out_of_reach(task, method, float(p))
        both = ours.keys() & results.of(task, REFERENCE, float(p)).keys()
        if not both:
            return OUT if failed and not ours else NONE
        of_all = "" if len(both) == len(SEEDS) else f" ({len(both)} of {len(SEEDS)})"
        return gap(results, task, method, p) + of_all

    return [[METHODS[method].title, *(cell(task, method, p) for task, p in columns)] for method in methods]


def lines(results: Results, task: str, methods: Iterable[str], p: float) -> list[list[str]]:
    """Title, cost, score, difference to MADTP, score without fine-tuning, and speed of methods."""
    rows = []
    for method in methods:
        title, records = METHODS[method].title, results.of(task, method, p)
        failed = results.out_of_reach(task, method, p)
        if records:
            title += f" (out of reach in {failed} more seeds)" if failed else ""
            against = gap(results, task, method, str(p)) if method != REFERENCE else ""
            plain = untuned(results, task, method, str(p))
            rows.append([title, costs(records), scores(records), against, plain, speed(records)])
        elif failed:
            rows.append([title, OUT, "", "", "", ""])
    return rows


def gap(results: Results, task: str, method: str, p: str, other: str = REFERENCE) -> str:
    """How much better a method is than another, seed by seed."""
    ours, theirs = results.of(task, method, float(p)), results.of(task, other, float(p))
    both = sorted(ours.keys() & theirs.keys())
    return spread([final(ours[seed])["score"] - final(theirs[seed])["score"] for seed in both], sign="+")


def tuned_gaps(results: Results, method: str, p: str) -> str:
    """How much better a method is than MADTP at one cost, on every task where both were run, and on how many seeds."""
    found = []
    for task in TASKS:
        both = results.of(task, method, float(p)).keys() & results.of(task, REFERENCE, float(p)).keys()
        if both:
            seeds = "one seed" if len(both) == 1 else f"{len(both)} seeds"
            found.append(f"{gap(results, task, method, p)} points on {NAMES[task]} ({seeds})")
    return ", ".join(found) or NOT_RUN


def score(results: Results, task: str, method: str, p: str = "0", batch: str = str(BATCH)) -> str:
    """The score of a method at one cost, by the evaluation's batch size."""
    records = results.of(task, method, float(p))
    return scores(records, int(batch)) if records or not results.out_of_reach(task, method, float(p)) else OUT


def untuned(results: Results, task: str, method: str, p: str) -> str:
    """The score of a method at one cost without fine-tuning."""
    return spread([record["untuned"]["score"] for record in results.of(task, method, float(p)).values()])


def as_they_are(results: Results, *columns: str) -> str:
    """Scores of dense models pruned without training, on validation, method by method; columns are TASK:P."""
    return without_training(results.as_they_are, columns)


def in_the_end(results: Results, *columns: str) -> str:
    """The same on the test split."""
    return without_training(results.in_the_end, columns)


def without_training(records: Sequence[dict], columns: Sequence[str]) -> str:
    """A row for the dense model and for each method, a column for each TASK:P."""
    asked = [(task, float(p)) for task, p in (column.split(":") for column in columns)]
    whole = {
        task: {r["seed"]: r["untuned"]["score"] for r in records if (r["task"], r["p"]) == (task, 0)}
        for task, _ in asked
    }
    rows = [["dense", *(spread([*whole[task].values()]) for task, _ in asked)]]
    for method in dict.fromkeys(r["method"] for r in records if r["p"]):
        own = ([r for r in records if (r["task"], r["p"], r["method"]) == (task, p, method)] for task, p in asked)
        shown = (as_it_is(found, whole[task]) for found, (task, _) in zip(own, asked, strict=True))
        rows.append([METHODS[method].title, *shown])
    return table(["", *(column(task, p) for task, p in asked)], rows)


def as_it_is(records: Sequence[dict], dense: dict[int, float]) -> str:
    """The score, beside that of the dense models by seed where they are of fewer seeds, and the schedule's shapes."""
    if not records:
        return NOT_RUN
    reached = {record["seed"]: record for record in records if "untuned" in record}
    if not reached:
        return OUT
    score = spread([record["untuned"]["score"] for record in reached.values()])
    if reached.keys() != dense.keys():
        score += f" of {mean(dense[seed] for seed in reached):.1f}"
    shapes = sorted({f"{record['shape']:g}" for record in reached.values() if "shape" in record}, key=float)
    notes = [f"{len(reached)} of {len(records)}"] * (len(reached) < len(records))
    notes += [f"*b* {', '.join(shapes)}"] * bool(shapes)
    return score + f" ({'; '.join(notes)})" * bool(notes)


def left(results: Results, task: str, method: str, p: str, tower: str) -> str:
    """Tokens of a tower that a method leaves after the last layer, the mean over samples and seeds."""
    records = results.of(task, method, float(p)).values()
    return f"{mean(final(record)['tokens'][tower][-1] for record in records):.0f}"


def keep(results: Results, *tasks: str) -> str:
    """Both rules at every batch size, and each model run by the other rule at the cost it was trained for."""
    batches = sorted([BATCH, *BATCHES])
    rows = []
    for task in tasks:
        for p, method in product(results.ratios(task), KEPT):
            if records := results.of(task, method, p):
                found = [[record["scores"][str(batch)] for record in records.values()] for batch in batches]
                found.append([record["crossed"] for record in records.values() if "score" in record["crossed"]])
                towers, rule = KEPT[method]
                pruned = " and ".join(tower for tower in towers if tower in found[0][0]["tokens"])
                rows.append([NAMES[task], cost_name(p), pruned, rule, *map(score_at_cost, found)])
    head = ["task", "cost", "pruned", "trained by", *(f"batch {batch}" for batch in batches), "run by the other rule"]
    return table(head, rows)


def crossed(results: Results, task: str, method: str, p: str) -> str:
    """The score of a method's trained models when the other rule runs them at the same cost."""
    return spread([record["crossed"]["score"] for record in results.of(task, method, float(p)).values()])


def score_at_cost(found: list[dict]) -> str:
    """The score of some seeds and, behind an @, what it cost them; out of reach where there are none."""
    return f"{spread([one['score'] for one in found])} @ {mean(one['percent'] for one in found):.1f}" if found else OUT


def widening(results: Results, task: str) -> str:
    """How many times as widely the inner products spread over an image in MADTP's last layer as in its first."""
    records = results.of(task, REFERENCE, ABLATED_AT).values()
    return spread([record["spreads"][-1] / record["spreads"][0] for record in records])


def factors(results: Results, *tasks: str) -> str:
    """MADTP at other temperatures than the last it was trained with."""
    names = [f"{factor:g}" for factor in sorted([1.0, *FACTORS])]
    return changed(results, "times T", "factors", names, tasks)


def towers(results: Results, *tasks: str) -> str:
    """MADTP trained with both towers pruned and asked with one of them pruned."""
    names = ["both", *TOWERS]
    return changed(results, "pruned", "towers", names, tasks)


def changed(results: Results, title: str, what: str, names: list[str], tasks: Iterable[str]) -> str:
    """The trained MADTP of some tasks when something is changed afterwards, or, by any other name, is not."""
    head, rows = [title], [[name] for name in names]
    for task in tasks:
        head += [f"{NAMES[task]}: {METRIC[task]}", "% of dense GFLOPs"]
        records = results.of(task, REFERENCE, ABLATED_AT).values()
        for name, row in zip(names, rows, strict=True):
            picked = [record[what].get(name, final(record)) for record in records]
            row += [spread([one["score"] for one in picked]), spread([one["percent"] for one in picked])]
    return table(head, rows)


def unequal(results: Results) -> str:
    """Methods some seed of which misses the cost asked for by more than a hundredth of it."""
    rows = []
    for task, method in product(TASKS, METHODS):
        for p in results.ratios(task):
            percents = [final(record)["percent"] for record in results.of(task, method, p).values()]
            if any(abs(percent / 100 - (1 - p)) > ALLOWED * (1 - p) for percent in percents):
                found = ", ".join(f"{percent:.1f}" for percent in percents)
                rows.append([column(task, p), METHODS[method].title, found])
    return table(["task, cost", "method", "% of dense GFLOPs, seed by seed"], rows) if rows else "None."


def lost_in_paper(results: Results, method: str, p: str) -> str:
    """Points that the paper's BLIP loses on NLVR2 by a method (words are joined by _) at about 1 - p of its cost."""
    dense, *others = POINTS["nlvr"]
    points = [point for point in others if point.method == method.replace("_", " ")]
    nearest = min(points, key=lambda point: abs(point.gflops / dense.gflops - (1 - float(p))))
    return f"{dense.scores['accuracy'] - nearest.scores['accuracy']:.1f}"


def missing(results: Results) -> str:
    """Cells of the plan that nobody has run."""
    left = {}
    for cell in (cell for task in TASKS for cell in plan(task)):
        if cell.name not in results.known:
            left.setdefault((cell.task, cell.p), {}).setdefault(cell.method, set()).add(cell.seed)
    rows = []
    for (task, p), methods in sorted(left.items()):
        names = [title(method) + seeds_in_brackets(seeds) for method, seeds in methods.items()]
        rows.append([column(task, p), "; ".join(names)])
    return table(["task, cost", "not run"], rows) if rows else "Nothing: the plan is complete."


def title(method: str) -> str:
    """A method, or the dense model, for readers."""
    return METHODS[method].title if method in METHODS else method


def seeds_in_brackets(seeds: set[int]) -> str:
    """Names the seeds unless they are all there are."""
    return "" if seeds == set(SEEDS) else f" (seed {', '.join(map(str, sorted(seeds)))})"


def machines(results: Results) -> str:
    """Where and when the results were made."""
    made = sorted({(r["cpu"], r["versions"]["torch"], r["versions"]["python"]) for r in results.known.values()})
    dates = sorted(r["date"] for r in results.known.values())
    minutes = sum(r["seconds"] for r in results.known.values()) / 60
    names = "; ".join(f"{cpu}, torch {torch}, Python {python}" for cpu, torch, python in made)
    return (
        f"{len(results.known)} configurations in {minutes:.0f} minutes of one core, {dates[0]} to {dates[-1]}: {names}"
    )


def steps(results: Results, method: str) -> str:
    """Steps that a method is fine-tuned for."""
    return ", ".join({str(r["steps"]) for r in results.known.values() if r["method"] == method and "steps" in r})


def plot(results: Results, name: str, *arguments: str) -> str:
    """Draws a picture and shows it."""
    file = f"{'_'.join([name, *arguments])}.png"
    title = plots.PLOTS[name](results, results.pictures / file, *arguments)
    return f"![{title}](results/{file})"


METRIC = {task: f"{name.replace('_', ' ')}, %" for task, name in SCORE.items()}
BLOCKS = named(
    compared,
    overview,
    ablations,
    gap,
    tuned_gaps,
    score,
    untuned,
    as_they_are,
    in_the_end,
    against_the_best,
    of_all_seeds,
    verdicts,
    level,
    too_wide,
    left,
    keep,
    crossed,
    factors,
    towers,
    widening,
    unequal,
    lost_in_paper,
    missing,
    machines,
    steps,
    plot,
)
