"""Which cells there are, and what is known of them: one JSON line for each in the results."""

import fcntl
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from itertools import product
from pathlib import Path

import torch

from benchmarks.experiment.cells import DEPTH, TASKS, Cell
from benchmarks.experiment.methods import COMPARED, METHODS
from utils import prepare_output

RATIOS = (0.3, 0.5, 0.7, 0.8)
ABLATED_AT = 0.5
SEEDS = (1, 2, 3)
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
        for p, method, seed in product(ratios or RATIOS, methods or METHODS, seeds)
        if method != "dense"
        and (method in COMPARED or p == ABLATED_AT or ratios)
        and not (task == "caption" and method in NEED_TEXT)
    ]
    dense = [Cell(task, seed) for seed in seeds]
    while dense[0].earlier:
        dense = list(dict.fromkeys(cell.earlier for cell in dense if cell.earlier)) + dense
    return list(dict.fromkeys(dense + chosen))


def finished(results: Path) -> dict[str, dict]:
    """The results there are, by the name of their cell."""
    files = [results / f"{task}.jsonl" for task in TASKS]
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return {record["name"]: record for record in map(json.loads, lines)}


def add(results: Path, cell: Cell, found: dict) -> None:
    """Adds a line to the results of a task."""
    prepare_output(results)
    record = {
        **{"name": cell.name, "task": cell.task, "method": cell.method, "p": cell.p, "seed": cell.seed},
        **{"depth": DEPTH, **found, "command": cell.command, "date": date.today().isoformat(), "cpu": cpu()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    with (results / f"{cell.task}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether no other process works on this; it is ours until the end of the block, or of the process."""
    prepare_output(path.parent)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except BlockingIOError:
            ours = False
        yield ours


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
