"""Does it work? MADTP beside other ways of keeping tokens, at equal cost, on data that everyone can make.

    python -m benchmarks.experiment --task nlvr
    python -m benchmarks.experiment --report
    python -m benchmarks.experiment --task nlvr --untuned

Every cell (a dense model; a method at one cost, fine-tuned from it) is run once and adds a line to the results. What
was stopped goes on with the cells that are left; several processes may work side by side. With --untuned the dense
models that are there are pruned as they are, and scored on validation; with --final too, on the test split.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

from benchmarks.comparison.ledger import claimed
from benchmarks.comparison.methods import METHODS
from benchmarks.experiment.cells import TASKS, Cell, Places
from benchmarks.experiment.ledger import RATIOS, SEEDS, add, finished, plan, plan_untuned
from benchmarks.experiment.report import write_report
from benchmarks.experiment.running import compare, train_dense
from benchmarks.experiment.untuned import SEARCHED, score
from benchmarks.timing import check_ratios
from utils import UserError

logger = logging.getLogger("experiment")


def work(cells: list[Cell], places: Places, results: Path, minutes: float, untuned: str = "") -> int:
    """Runs what is not finished, until the time is up; `untuned` is the split to score models as they are on.

    Returns:
        How many cells are left.
    """
    started = time.perf_counter()
    for cell in cells:
        if time.perf_counter() - started > 60 * minutes:
            break
        with claimed(places.output / "locks" / cell.name) as ours:
            known = finished(results, untuned)
            ready = untuned or cell.earlier is None or cell.earlier.name in known
            if not ours or cell.name in known or not ready:
                continue
            began = time.perf_counter()
            if untuned:
                before = finished(results, SEARCHED).get(cell.name, {})  # choices are made there, once
                found = score(cell, places, untuned, before.get("shape"))
            else:
                found = (compare if cell.p else train_dense)(cell, places)
            seconds = time.perf_counter() - began
            add(results, cell, found | {"seconds": seconds}, untuned)
            logger.info("%s took %.0f s", cell.name, seconds)
    return len([cell for cell in cells if cell.name not in finished(results, untuned)])


def main(argv: list[str] | None = None) -> int:
    """Runs the cells of a task that are not finished, or writes the report; 1 where some are left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiment", description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("--task", choices=TASKS, help="run its configurations")
    flag("--methods", nargs="+", choices=["dense", *METHODS], default=[], help="some alone; dense is always there")
    flag("--p", nargs="+", type=float, default=[], help=f"shares of the GFLOPs to remove, instead of {RATIOS}")
    flag("--seeds", nargs="+", type=int, default=SEEDS, help="of the data and the models")
    flag("--minutes", type=float, default=float("inf"), help="begin nothing new after so many minutes")
    flag("--data", type=Path, default=Path("datasets/experiment"), help="folder of the generated pictures")
    flag("--output", type=Path, default=Path("output/experiment"), help="folder of checkpoints")
    flag("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    flag("--untuned", action="store_true", help="score the dense models as they are, pruned, on validation")
    flag("--final", action="store_true", help="with --untuned: score the test split, once choices are made")
    flag("--report", type=Path, nargs="?", const=Path("docs"), help="write results.md into this folder")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logger.setLevel(logging.INFO)
    left = 0
    try:
        check_ratios(args.p)
        if not (args.task or args.report):
            raise UserError("nothing to do: give --task, to run its configurations, or --report, to write the page")
        if args.final and not args.untuned:
            raise UserError("--final is for models as they are; add --untuned")
        if args.task:
            cells = (plan_untuned if args.untuned else plan)(args.task, args.methods, args.p, args.seeds)
            untuned = ("test" if args.final else "val") if args.untuned else ""
            left = work(cells, Places(args.data, args.output), args.results, args.minutes, untuned)
        if args.report:
            write_report(args.results, args.report)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if left:
        print(f"{left} configurations are left; the same command goes on with them")
    return min(left, 1)


if __name__ == "__main__":
    sys.exit(main())
