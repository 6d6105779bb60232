"""A training step and an evaluation of every task, in miniature, on the demo's data."""

import signal
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.lines import Part
from benchmarks.workload import SMALL, SMALL_CLIP, TASKS
from compress_nlvr_dtp import NLVR
from data import demo
from madtp.method.rules import BATCH, COVERAGE, SAMPLE
from madtp.run import config as configuration
from madtp.run.engine import evaluate, main, prepare, train_one_epoch
from madtp.run.flags import command_line
from madtp.run.preparation import begin
from madtp.shared.run_files import LAST
from madtp.shared.weights import checkpoint
from utils import SIGNALS

AMOUNT = {BATCH: 3.0, SAMPLE: 3.0, COVERAGE: 0.7}  # temperatures, and of coverage an amount
STOPPED = 143  # exit status of a run that was asked to leave
NEEDS = {"clip": ("open_clip",)}  # whose vocabulary CLIP's tokenizer takes
KEYS = {"batch_size_train": 8, "batch_size_test": 25, "init_scheme": "xavier", "metrics": [], "k_test": 4}
KEYS |= {"epoch_steps": 1, "max_epoch": 1, "calibration_batches": 1, "init_lr": 1e-3}


def parts(device: str, small: bool) -> Iterator[Part]:
    """Every task by every rule, trained and scored; `small` leaves one rule to each task."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "data"
        yield Part("data", partial(make, made))
        for number, rule in enumerate(AMOUNT):
            for place, name in enumerate(TASKS):
                if not small or place % len(AMOUNT) == number:
                    yield Part(f"{name} {rule}", partial(run, name, rule, device, made), NEEDS.get(name, ()))
        for rule in AMOUNT:
            if not small or rule == BATCH:
                yield Part(f"stopped and resumed {rule}", partial(resumed, rule, device, made), ("ruamel",))


def make(folder: Path) -> Iterator[dict]:
    """Draws 50 pictures of 72 pixels for each split."""
    demo.make(folder, seed=0, train=50, val=50, test=50, pairs=64, grid=6, objects=2)
    yield {"pictures": 150}


def run(name: str, rule: str, device: str, data: Path) -> Iterator[dict]:
    """One training step, then the evaluation of a split: losses, metrics, cost."""
    task = TASKS[name]()
    config = miniature(task.name, data) | by(rule)
    with tempfile.TemporaryDirectory() as folder:
        running = prepare(task, flags(task, device, folder, AMOUNT[rule]), config)
        _, state = begin(running)
        state.progress.temperature = AMOUNT[rule]
        losses = train_one_epoch(running, state)
        metrics = evaluate(running, running.scored_splits[0], AMOUNT[rule])
    if not all(torch.isfinite(torch.tensor(loss)) for loss in losses.values()):
        raise ValueError(f"losses that are no numbers: {losses}")
    yield {"losses": losses, "percent": metrics["percent"], "tokens": metrics["tokens"]}


def resumed(rule: str, device: str, data: Path) -> Iterator[dict]:
    """Two epochs in scaled half precision, with workers and repeatable operations: whole, and in two halves."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = miniature("nlvr", data) | by(rule) | {"max_epoch": 2, "amp": "fp16"}
        configuration.write(config, place / "nlvr.yaml")
        words = ["--config", f"{place}/nlvr.yaml", "--device", device, "--temperature", str(AMOUNT[rule])]
        words += ["--num_workers", "2", "--deterministic", "--output_dir"]
        handlers = {number: signal.getsignal(number) for number in SIGNALS}  # whom a run that leaves does not give back
        try:
            whole = main(NLVR(), [*words, f"{place}/whole"])
            halves = main(Stopped(), [*words, f"{place}/halves"]), main(NLVR(), [*words, f"{place}/halves", "--resume"])
        finally:
            torch.use_deterministic_algorithms(False)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if (whole, *halves) != (0, STOPPED, 0):
            raise ValueError(f"exit status {whole} of the whole run, {halves[0]} and {halves[1]} of its halves")
        one, other = (checkpoint.read(place / run / LAST)["model"] for run in ("whole", "halves"))
    yield {"equal": all(torch.equal(one[name], other[name]) for name in one)}


class Stopped(NLVR):
    """Is asked to leave in the middle."""

    def losses(self, model, batch, temperature, progress):
        if progress >= 1:
            signal.raise_signal(signal.SIGTERM)
        return super().losses(model, batch, temperature, progress)


def by(rule: str) -> dict:
    """The keys that say by which rule a model prunes."""
    return {"keep": rule, "shape": 1.0 if rule == COVERAGE else None}


def miniature(task: str, data: Path) -> dict:
    """The configuration of a task on that data, its model of two narrow layers."""
    images, annotation = str(data / "images"), str(data / "annotation")
    roots = {"image_root": images, "vqa_root": images, "vg_root": images, "ann_root": annotation}
    roots |= {"coco_gt_root": f"{annotation}/coco_gt", "tokenizer": str(data / "tokenizer")}
    own = {"clip": SMALL_CLIP, "dataset": "flickr", "queue_size": 64, "train_files": ["vqa_train"]}
    config = configuration.defaults(task)
    return config | {name: value for name, value in {**SMALL, **KEYS, **roots, **own}.items() if name in config}


def flags(task, device: str, folder: str, temperature: float) -> Namespace:
    """The flags of a run that is told its temperature."""
    words = ["--device", device, "--output_dir", folder, "--temperature", str(temperature), "--num_workers", "0"]
    return command_line(task).parse_args(words)
