"""Does it work on photos? Every way of keeping tokens beside the dense model, at equal cost.

    python -m benchmarks.photos --prepare --captions dataset_flickr8k.json --questions qa.894.raw.train.txt ...
    python -m benchmarks.photos --dense retrieval
    python -m benchmarks.photos --task retrieval
    python -m benchmarks.photos --task retrieval --finetuned
    python -m benchmarks.photos --report

Every cell (the dense model; a rule by a schedule at a cost) is run once and adds a line to the results. What was
stopped goes on with the cells that are left; several processes may work side by side. Choices are made on the
validation split; `--final` scores the test split, without the photos that were looked at, into a file of its own.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import torch

from benchmarks.comparison.ledger import add_line, claimed, read_lines
from benchmarks.photos import tuning
from benchmarks.photos.cells import LESSONS, RATIOS, RULES, SCHEDULES, STARTS, Cell, plan, tuned_plan
from benchmarks.photos.dense import train_dense
from benchmarks.photos.frozen import BATCH
from benchmarks.photos.machine import Machine
from benchmarks.photos.pictures import draw
from benchmarks.photos.prepare import prepare
from benchmarks.photos.report import write_report
from benchmarks.photos.results import best_schedule
from benchmarks.photos.running import Bench, needs
from benchmarks.photos.world import ALL_TASKS, MODELLED, RERANKING, Places
from benchmarks.timing import check_ratios
from utils import UserError

logger = logging.getLogger("photos")


def work(cells: list[Cell], bench: Bench, files: list[Path], minutes: float, told: dict) -> int:
    """Runs what is not finished, until the time is up.

    Args:
        cells: in their order.
        bench: what runs them.
        files: of results; lines are added to the first, and the others are read where a cell needs them.
        minutes: after which none begins.
        told: what else there is to say of every cell.

    Returns:
        How many cells are left.
    """
    started = time.perf_counter()
    for cell in cells:
        if time.perf_counter() - started > 60 * minutes:
            break
        with claimed(bench.places.output / "locks" / cell.name) as ours:
            known = read_lines(files)
            if not ours or cell.name in known or (cell.earlier and cell.earlier.name not in known):
                continue
            began = time.perf_counter()
            found = tuning.run(bench, cell, known) if cell.trained else bench.run(cell, known)
            record = {"name": cell.name, "task": cell.task, "split": cell.split, "rule": cell.rule}
            record |= {"schedule": cell.schedule, "p": cell.p, "seed": cell.seed, **cell.told, **found, **told}
            record |= {"command": cell.command}
            add_line(files[0], record | {"seconds": time.perf_counter() - began})
            logger.info("%s took %.0f s", cell.name, time.perf_counter() - began)
    return len([cell for cell in cells if cell.name not in read_lines(files)])


def command_line() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photos", description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("--prepare", action="store_true", help="write the annotation files")
    flag("--captions", nargs="+", type=Path, default=[], help="with --prepare: Karpathy's file, or Flickr8k's own")
    flag("--questions", nargs="+", type=Path, default=[], help="with --prepare: DAQUAR's files")
    flag("--dense", nargs="+", choices=MODELLED, default=[], help="train the dense models of these tasks")
    flag("--blind", action="store_true", help="with --dense and --task: the same model without the photo")
    flag("--epochs", type=int, default=0, help="with --dense: instead of the recipe's")
    flag("--task", choices=ALL_TASKS, help="run its configurations")
    flag("--finetuned", action="store_true", help="with --task: models fine-tuned under the rules instead")
    flag("--steps", type=int, default=150, help="with --finetuned: of training")
    flag("--seeds", nargs="+", type=int, default=[1], help="with --finetuned: of the order of the photos")
    flag("--lessons", nargs="+", choices=LESSONS, default=[*LESSONS[:1]], help="with --finetuned: what to learn by")
    flag("--start", choices=STARTS, default=STARTS[0], help="with --finetuned: the dense model as it is, or trained")
    flag("--rules", nargs="+", choices=RULES, default=[], metavar="RULE", help=f"some alone: {', '.join(RULES)}")
    flag("--schedules", nargs="+", choices=SCHEDULES, default=[], help="some alone")
    flag("--p", nargs="+", type=float, default=[], help=f"shares of the GFLOPs to remove, instead of {RATIOS}")
    flag("--photos", type=int, default=0, help="score, or draw, so many photos alone, from the first")
    flag("--minutes", type=float, default=float("inf"), help="begin nothing new after so many minutes")
    flag("--split", choices=("val",), default="val", help="what choices are made on")
    flag("--final", action="store_true", help="score the test split instead, into a file of its own")
    flag("--device", choices=("cpu", "cuda"), default="cpu", help="what to run on")
    flag("--amp", choices=("bf16", "off"), default="off", help="what to multiply in")
    flag("--data", type=Path, default=Path("datasets/photos"), help="folder of the photos and their annotation")
    flag("--towers", type=Path, default=Path("pretrained/towers"), help="folder of the converted towers")
    flag("--output", type=Path, default=Path("output/photos"), help="folder of tokens and checkpoints")
    flag("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    flag("--pictures", type=Path, help="with --task: draw what every rule keeps of the first photos into this folder")
    flag("--report", type=Path, nargs="?", const=Path("docs"), help="write photos.md into this folder")
    return parser


def run_cells(args: argparse.Namespace, places: Places) -> int:
    """Runs the cells of a task, or draws them; how many are left."""
    if args.pictures and args.finetuned:
        raise UserError("--pictures draws models as they are; leave out --finetuned")
    if args.task == RERANKING and args.finetuned:
        raise UserError("reranking is scored as it is; leave out --finetuned")
    if args.blind and args.task not in MODELLED:
        raise UserError(f"{args.task} has no model without the photo; leave out --blind")
    split, machine = "test" if args.final else args.split, machine_of(args)
    needs(places, args.task, args.blind)
    cells, files = cells_of(args, split), [results_file(args, args.finetuned, args.final)]
    bench = Bench(places, args.task, split, machine, BATCH if args.pictures else args.photos, args.blind)
    if args.pictures:
        draw(bench, cells, read_lines(files), args.pictures, args.photos)
        return 0
    if args.finetuned:
        files.append(results_file(args, False, args.final))
    return work(cells, bench, files, args.minutes, machine.described())


def cells_of(args: argparse.Namespace, split: str) -> list[Cell]:
    """What is asked for."""
    if args.blind:
        return [Cell(args.task, split, "blind")]
    if args.finetuned:
        known = read_lines([results_file(args, False, False)])
        return tuned_plan(
            *(args.task, split, args.steps, args.seeds, lambda rule, p: best_schedule(known, args.task, rule, p)),
            *(args.rules, args.schedules, args.p, args.lessons, args.start),
        )
    cells = plan(args.task, split, args.rules, args.schedules, args.p)
    return cells[:1] if args.rules == ["dense"] else cells


def results_file(args: argparse.Namespace, tuned: bool, final: bool) -> Path:
    """Where the lines of a task are."""
    return args.results / f"photos_{args.task}{'_tuned' * tuned}{'_final' * final}.jsonl"


def machine_of(args: argparse.Namespace) -> Machine:
    """What to run on."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; leave it out")
    return Machine(args.device, torch.bfloat16 if args.amp == "bf16" else torch.float32)


def main(argv: list[str] | None = None) -> int:
    """Does what is asked for, in order; 1 where cells are left."""
    args = command_line().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logger.setLevel(logging.INFO)
    places, left = Places(args.data, args.towers, args.output, args.results), 0
    try:
        check_ratios(args.p)
        if not (args.prepare or args.dense or args.task or args.report):
            raise UserError("nothing to do: give --prepare, --dense, --task or --report; --help says what each does")
        if args.prepare:
            prepare(places, args.captions, args.questions)
        for task in args.dense:
            train_dense(places, task, args.blind, machine_of(args), args.epochs)
        if args.task:
            left = run_cells(args, places)
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
