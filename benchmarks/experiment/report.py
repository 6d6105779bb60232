"""Turns results into docs/results.md: the words come from a template, everything else from the results.

In the template `{name argument ...}` stands for what the function `name` below makes of the results.
"""

import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import mean

from benchmarks.experiment import plots
from benchmarks.experiment.cells import BATCH, TASKS
from benchmarks.experiment.ledger import ABLATED_AT, SEEDS, plan
from benchmarks.experiment.methods import ABLATED, COMPARED, METHODS, TOWERS
from benchmarks.experiment.results import Results, costs, final, scores, speed, spread, table
from benchmarks.experiment.running import BATCHES, FACTORS, SCORE
from utils import UserError, prepare_output, write_atomic

WORDS = Path(__file__).parent / "words.md"
PLACE = re.compile(r"\{(\w+)((?:\s+[\w.]+)*)\}")
REFERENCE = "madtp"
KEPT = {
    "madtp": ("image and text", "`batch`"),
    "sample": ("image and text", "`sample`"),
    "image": ("image", "`batch`"),
    "sample_image": ("image", "`sample`"),
}  # what is pruned, and by which rule


def write_report(results: Path, docs: Path) -> None:
    """Writes results.md and its plots.

    Raises:
        UserError: there are no results, or the template asks for what there is not.
    """
    found = Results(results, docs / "results")
    if not found.known:
        raise UserError(f"there are no results in {results}: run `python -m benchmarks.experiment --task nlvr` first")
    prepare_output(found.pictures)

    def filled(place: re.Match) -> str:
        name, *arguments = place.group(0)[1:-1].split()
        if name not in BLOCKS:
            raise UserError(f"{WORDS}: {place.group(0)} is none of {', '.join(BLOCKS)}")
        return BLOCKS[name](found, *arguments)

    write_atomic(docs / "results.md", PLACE.sub(filled, WORDS.read_text()))


def compared(results: Results, task: str, p: str) -> str:
    """Every method at one cost, as far as it was run."""
    dense = results.of(task, "dense", 0.0)
    rows = [["dense", "100", scores(dense), "", "", speed(dense)], *lines(results, task, COMPARED, float(p))]
    head = ["method", "% of dense GFLOPs", METRIC[task], "against MADTP", "not fine-tuned", "samples/s"]
    return table(head, rows)


def ablations(results: Results, task: str) -> str:
    """MADTP with parts replaced, at one cost, as far as it was run."""
    rows = [row[:-1] for row in lines(results, task, [REFERENCE, *ABLATED], ABLATED_AT)]
    return table(["", "% of dense GFLOPs", METRIC[task], "against MADTP", "not fine-tuned"], rows)


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
            rows.append([title, "out of reach", "", "", "", ""])
    return rows


def gap(results: Results, task: str, method: str, p: str, other: str = REFERENCE) -> str:
    """How much better a method is than another, seed by seed."""
    ours, theirs = results.of(task, method, float(p)), results.of(task, other, float(p))
    both = sorted(ours.keys() & theirs.keys())
    return spread([final(ours[seed])["score"] - final(theirs[seed])["score"] for seed in both], sign="+")


def score(results: Results, task: str, method: str, p: str = "0", batch: str = str(BATCH)) -> str:
    """The score of a method at one cost, by the evaluation's batch size."""
    return spread([r["scores"][batch]["score"] for r in results.of(task, method, float(p)).values()])


def untuned(results: Results, task: str, method: str, p: str) -> str:
    """The score of a method at one cost without fine-tuning."""
    return spread([record["untuned"]["score"] for record in results.of(task, method, float(p)).values()])


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
                crossed = [record["crossed"] for record in records.values()]
                cells = [f"{scores(records, batch)} @ {costs(records, batch)}" for batch in batches]
                cells.append(
                    f"{spread([one['score'] for one in crossed])} @ {mean(one['percent'] for one in crossed):.1f}"
                )
                rows.append([task, f"{p:g}", *KEPT[method], *cells])
    head = ["task", "p", "pruned", "trained by", *(f"batch {batch}" for batch in batches), "run by the other rule"]
    return table(head, rows)


def widening(results: Results, task: str) -> str:
    """How many times as widely the inner products spread over an image in MADTP's last layer as in its first."""
    records = results.of(task, REFERENCE, ABLATED_AT).values()
    return spread([record["spreads"][-1] / record["spreads"][0] for record in records])


def factors(results: Results, task: str) -> str:
    """MADTP at other temperatures than the last it was trained with."""
    records = results.of(task, REFERENCE, ABLATED_AT)
    rows = []
    for name in sorted([1.0, *FACTORS]):
        changed = [r["factors"][f"{name:g}"] if name != 1 else final(r) for r in records.values()]
        rows.append([f"{name:g}", spread([r["percent"] for r in changed]), spread([r["score"] for r in changed])])
    return table(["times T", "% of dense GFLOPs", METRIC[task]], rows)


def towers(results: Results, task: str) -> str:
    """MADTP trained with both towers pruned and asked with one of them pruned."""
    records = results.of(task, REFERENCE, ABLATED_AT)
    rows = [["both", costs(records), scores(records)]]
    for tower in TOWERS:
        changed = [r["towers"][tower] for r in records.values()]
        rows.append([tower, spread([r["percent"] for r in changed]), spread([r["score"] for r in changed])])
    return table(["pruned", "% of dense GFLOPs", METRIC[task]], rows)


def lost_in_paper(results: Results, percent: str) -> str:
    """Points that the paper's BLIP loses on NLVR2 at this percentage of its dense cost."""
    return f"{plots.PAPER[100.0] - plots.PAPER[float(percent)]:.1f}"


def missing(results: Results) -> str:
    """Cells of the plan that nobody has run."""
    left = {}
    for cell in (cell for task in TASKS for cell in plan(task)):
        if cell.name not in results.known:
            left.setdefault((cell.task, cell.p), {}).setdefault(cell.method, set()).add(cell.seed)
    lines = []
    for (task, p), methods in sorted(left.items()):
        names = [method + seeds_in_brackets(seeds) for method, seeds in methods.items()]
        lines.append(f"- {task}, p {p:g}: {', '.join(names)}")
    return "\n".join(lines) or "Nothing: the plan is complete."


def seeds_in_brackets(seeds: set[int]) -> str:
    """Names the seeds unless they are all there are."""
    return "" if seeds == set(SEEDS) else f" (seed {', '.join(map(str, sorted(seeds)))})"


def machines(results: Results) -> str:
    """Where and when the results were made."""
    made = sorted({(r["cpu"], r["versions"]["torch"], r["versions"]["python"]) for r in results.known.values()})
    dates = sorted(r["date"] for r in results.known.values())
    minutes = sum(r["seconds"] for r in results.known.values()) / 60
    names = "; ".join(f"{cpu}, torch {torch}, Python {python}" for cpu, torch, python in made)
    return f"{len(results.known)} cells in {minutes:.0f} minutes of one core, {dates[0]} to {dates[-1]}: {names}"


def steps(results: Results) -> str:
    """Steps of fine-tuning."""
    return ", ".join(str(number) for number in sorted({r["steps"] for r in results.known.values() if "steps" in r}))


def plot(results: Results, name: str, *arguments: str) -> str:
    """Draws a picture and shows it."""
    file = f"{'_'.join([name, *arguments])}.png"
    title = plots.PLOTS[name](results, results.pictures / file, *arguments)
    return f"![{title}](results/{file})"


METRIC = {task: f"{name.replace('_', ' ')}, %" for task, name in SCORE.items()}
BLOCKS = {
    function.__name__: function
    for function in (
        compared,
        ablations,
        gap,
        score,
        untuned,
        left,
        keep,
        factors,
        towers,
        widening,
        lost_in_paper,
        missing,
        machines,
        steps,
        plot,
    )
}
