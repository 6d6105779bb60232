"""Which cells there are, and what is known of them: one JSON line for each in the results."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.comparison.ledger import add_line, read_lines
from benchmarks.comparison.methods import ABLATED, COMPARED, DEPTH, SCHEDULED
from benchmarks.experiment.cells import TASKS, Cell

RATIOS = (0.3, 0.5, 0.7, 0.8)
ABLATED_AT = 0.5
SEEDS = (1, 2, 3)
UNTUNED = {"val": "untuned.jsonl", "test": "untuned_final.jsonl"}  # by the split that is scored
# Nothing new where no text is pruned, in captioning.
NEED_TEXT = ("static_image", "image", "sample_image", "unguided_image", "text")


def plan(
    task: str, methods: Sequence[str] = (), ratios: Sequence[float] = (), seeds: Sequence[int] = SEEDS
) -> list[Cell]:
    """The cells of a task in the order in which they are run, those that others start from first.

    Ablations are run at one cost alone, unless costs are asked for.
    """
    chosen = [
        Cell(task, seed, method, p)
        for p, method, seed in product(ratios or RATIOS, methods or [*COMPARED, *ABLATED], seeds)
        if method != "dense"
        and (method in COMPARED or p == ABLATED_AT or ratios)
        and not (task == "caption" and method in NEED_TEXT)
    ]
    dense = [Cell(task, seed) for seed in seeds]
    while dense[0].earlier:
        dense = list(dict.fromkeys(cell.earlier for cell in dense if cell.earlier)) + dense
    return list(dict.fromkeys(dense + chosen))


def plan_untuned(
    task: str, methods: Sequence[str] = (), ratios: Sequence[float] = (), seeds: Sequence[int] = SEEDS
) -> list[Cell]:
    """The dense models of a task, then what prunes them as they are, a cost at a time."""
    dense = [Cell(task, seed) for seed in seeds]
    rules = methods or ["madtp", "sample", "tome_even", *SCHEDULED]
    return dense + [Cell(task, seed, method, p) for p, method, seed in product(ratios or RATIOS, rules, seeds)]


def finished(results: Path, untuned: str = "") -> dict[str, dict]:
    """The results by the name of their cell; `untuned` is the split on which models were scored as they are."""
    return read_lines([results / UNTUNED[untuned]] if untuned else [results / f"{task}.jsonl" for task in TASKS])


def add(results: Path, cell: Cell, found: dict, untuned: str = "") -> None:
    """Adds a line to the results of a task, or of a split that models as they are were scored on."""
    flags = {"": "", "val": " --untuned", "test": " --untuned --final"}[untuned]
    record = {
        **{"name": cell.name, "task": cell.task, "method": cell.method, "p": cell.p, "seed": cell.seed},
        **{"depth": DEPTH, **found, "command": cell.command + flags},
    }
    add_line(results / (UNTUNED[untuned] if untuned else f"{cell.task}.jsonl"), record)
