"""Does it work? MADTP beside other ways of keeping tokens, at equal cost, on data that everyone can make.

    python -m benchmarks.experiment --task nlvr
    python -m benchmarks.experiment --report

Every cell (a dense model; a method at one cost, fine-tuned from it) is run once and adds a line to the results. What
was stopped goes on with the cells that are left; several processes may work side by side.
"""

import argparse
import fcntl
import json
import logging
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from itertools import product
from pathlib import Path

import torch

from benchmarks.experiment.cells import DEPTH, TASKS, Cell, Places, compare, train_dense
from benchmarks.experiment.methods import COMPARED, METHODS
from benchmarks.experiment.report import write_report
from utils import UserError, prepare_output

RATIOS = (0.3, 0.5, 0.7, 0.8)
ABLATED_AT = 0.5


def plan(task: str, methods: list[str], ratios: list[float], seeds: list[int]) -> list[Cell]:
    """The cells of a task in the order in which they are run, those that others start from first.

    Ablations are run at one cost alone, unless they are asked for by name at others.
    """
    chosen = [
        Cell(task, seed, method, p)
        for p, method, seed in product(ratios or RATIOS, methods or METHODS, seeds)
        if method != "dense" and (method in COMPARED or p == ABLATED_AT or ratios)
    ]
    dense = [Cell(task, seed) for seed in seeds]
    while dense[0].earlier:
        dense = [cell.earlier for cell in dense[: len(seeds)]] + dense
    return dense + chosen


def finished(results: Path) -> dict[str, dict]:
    """The results there are, by the name of their cell."""
    lines = [line for file in sorted(results.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return {record["name"]: record for record in map(json.loads, lines)}


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether no other process works on this; it is ours until the end of the block, or of the process."""
    prepare_output(path.parent)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False


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


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def work(cells: list[Cell], places: Places, results: Path, minutes: float) -> int:
    """Runs what is not finished, until the time is up.

    Returns:
        How many cells are left.
    """
    started = time.perf_counter()
    for cell in cells:
        if time.perf_counter() - started > 60 * minutes:
            break
        with claimed(places.output / "locks" / cell.name) as ours:
            known = finished(results)
            if not ours or cell.name in known or (cell.earlier and cell.earlier.name not in known):
                continue
            began = time.perf_counter()
            found = (compare if cell.p else train_dense)(cell, places)
            add(results, cell, found | {"seconds": time.perf_counter() - began})
            logging.getLogger(__name__).info("%s took %.0f s", cell.name, time.perf_counter() - began)
    return len([cell for cell in cells if cell.name not in finished(results)])


def main(argv: list[str] | None = None) -> int:
    """Runs the cells of a task that are not finished, or writes the report; 1 where cells are left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("--task", choices=TASKS)
    flag("--methods", nargs="+", choices=["dense", *METHODS], default=[], help="some alone; dense is always there")
    flag("--p", nargs="+", type=float, default=[], help=f"shares of the GFLOPs to remove, instead of {RATIOS}")
    flag("--seeds", nargs="+", type=int, default=[1, 2, 3])
    flag("--minutes", type=float, default=float("inf"), help="begin no cell after this time")
    flag("--data", type=Path, default=Path("datasets/experiment"))
    flag("--output", type=Path, default=Path("output/experiment"), help="folder of checkpoints")
    flag("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    flag("--report", action="store_true", help="write docs/results.md from the results")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        left = 0
        if args.task:
            cells = plan(args.task, args.methods, args.p, args.seeds)
            left = work(cells, Places(args.data, args.output), args.results, args.minutes)
        if args.report:
            write_report(args.results, Path("docs"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return min(left, 1)


if __name__ == "__main__":
    sys.exit(main())
