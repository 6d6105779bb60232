"""The demo: trains a small BLIP on generated pictures of shapes, compresses it, and shows what it cost and kept.

    python -m madtp demo nlvr [--quick]

It runs the same commands that a user would and prints each of them. `--quick` runs the same chain with few steps.
"""

import argparse
import importlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from madtp.cost.measure import CostMeter, device_of, to_device
from madtp.look import machine, pictures
from madtp.look.stages import DEMOS, Demo, Stage, command
from madtp.look.survival import follow, tokens_of
from madtp.run import engine
from madtp.run.flags import parse
from madtp.shared.files import prepare_output, whole_file, write_atomic
from madtp.shared.run_files import BEST, CONFIG, LOG
from transform.pictures import MEAN, STD

QUICK_DATA = "--train 256 --val 64 --test 64 --pairs 300".split()
SHOWN = 5  # examples in tokens.png
TIMED_BATCHES, TIMED_ROUNDS = 8, 5
REPORT_SECONDS = 11  # of what follows the stages


def run(args: argparse.Namespace) -> int:
    """Runs a demo from start to end; the exit status, that of the stage that failed."""
    demo, folder = DEMOS[args.task], Path(DEMOS[args.task].folder + ("_quick" if args.quick else ""))
    started = time.perf_counter()
    prepare_output(folder)
    print(machine.use_free_cores())
    try:
        run_stages(demo, folder, args.quick, machine.pace())
    except subprocess.CalledProcessError as error:
        return error.returncode
    report(demo, folder, args.quick)
    print(f"\n{time.perf_counter() - started:.0f} s in all. Everything is in {folder}/.")
    if args.quick:
        print("This was --quick: a few steps on a little data. The numbers mean nothing.")
    return 0


def run_stages(demo: Demo, folder: Path, quick: bool, pace: float) -> None:
    """Makes the data and runs every stage, saying what is left to do.

    Args:
        demo: its stages.
        folder: of its output.
        quick: a few steps of each.
        pace: how many times as long as the stages say all takes, until some of them have shown it.
    """
    data = f"{folder}/data" if quick else "datasets/demo"
    commands = [("make the pictures", ["-m", "madtp", "demo_data", "--out", data, *(QUICK_DATA if quick else [])], 9)]
    commands += [(stage.title, command(stage, folder, data, quick), stage.seconds) for stage in demo.stages]
    left, taken, expected = sum(seconds for _, _, seconds in commands) + REPORT_SECONDS, 0.0, 0.0
    for number, (title, arguments, seconds) in enumerate(commands, start=1):
        pace = taken / expected if expected else pace
        about = "" if quick else f" - about {left * pace / 60:.1f} min to go"
        print(f"\n=== {number}/{len(commands)} {title}{about}\n$ python {shlex.join(arguments)}", flush=True)
        begun = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True)
        left -= seconds
        if number > 1:  # the pictures may have been there already, which says nothing about the machine
            taken, expected = taken + time.perf_counter() - begun, expected + seconds


def report(demo: Demo, folder: Path, quick: bool) -> None:
    """Compares the dense and the compressed model: table.txt, summary.png, tokens.png.

    They are scored on the test split, or on validation where the answers to the test are kept back.
    """
    dense, compressed = (load(demo, stage, folder) for stage in demo.stages[-2:])
    metric, label = demo.metric
    split = dense[0].task.epoch_splits[-1]
    results = [engine.evaluate(run, split, temperature) for run, _, temperature in (dense, compressed)]
    speeds = paired_speed(dense, compressed)
    header = f"{f'{split} split':12s} {label:>13s} {'GFLOPs':>9s} {'% of dense':>11s} {'T':>8s} {'samples/s':>10s}"
    rows = [header]
    for name, (_, _, temperature), scores, speed in zip(
        ("dense", "compressed"), (dense, compressed), results, speeds, strict=True
    ):
        rows.append(
            f"{name:12s} {scores[metric]:13.1f} {scores['gflops']:9.4f} {scores['percent']:11.1f} "
            f"{temperature:8.1f} {speed:10.0f}"
        )
    note = ["(--quick: these numbers mean nothing)"] if quick else []
    table = "\n".join([*rows, f"on the same batches {speeds[1] / speeds[0]:.2f} times as fast as dense", *note])
    print(f"\n{table}")
    write_atomic(folder / "table.txt", table + "\n")
    logs = [read_log(folder / stage.name) for stage in demo.stages[-2:]]
    with whole_file(folder / "summary.png") as file:
        pictures.draw_summary(file, *logs, metric, f"{demo.task}: dense, then compressed")
    examples = shown_examples(dense, compressed)
    with whole_file(folder / "tokens.png") as file:
        pictures.draw_tokens(file, examples, "What the compressed model keeps, layer by layer")


def load(demo: Demo, stage: Stage, folder: Path) -> tuple[engine.Run, torch.nn.Module, float]:
    """The run, the model and the temperature of a stage's best checkpoint, ready for evaluation."""
    task = getattr(importlib.import_module(stage.script), demo.task)()
    output = folder / stage.name
    best = f"{output}/{BEST}"
    flags = ["--evaluate", "--pretrained", best, "--config", f"{output}/{CONFIG}", "--output_dir", f"{output}"]
    run = engine.prepare(task, *parse([*flags, "--num_workers", "0"], task))
    return run, run.model.eval(), run.stored.temperature


@torch.inference_mode()
def paired_speed(*runs: tuple[engine.Run, torch.nn.Module, float]) -> list[float]:
    """Samples per second of each model on the same test batches, the models taking turns; medians over the rounds."""
    batches = [batch for batch, _ in zip(runs[0][0].loaders["test"], range(TIMED_BATCHES), strict=False)]
    samples, seconds = sum(len(batch["index"]) for batch in batches), [[] for _ in runs]
    for turn in range(1 + TIMED_ROUNDS):
        for (run, model, temperature), times in zip(runs, seconds, strict=True):
            meter = CostMeter(lambda trace: 0.0)
            for batch in batches:
                with meter.forward(len(batch["index"])) as trace:
                    run.task.predict(model, to_device(batch, device_of(model)), temperature, trace)
            times += [meter.seconds] * (turn > 0)  # the first round warms up
    return [samples / median(times) for times in seconds]


@torch.inference_mode()
def shown_examples(dense: tuple, compressed: tuple) -> list[pictures.Example]:
    """Some test samples with what both models say, and the patches that the compressed one keeps."""
    (run, model, temperature), batch = compressed, next(iter(compressed[0].loaders["test"]))
    names = [name for name in ("image", "image0", "image1") if name in batch]
    meter = CostMeter(lambda trace: 0.0)
    with meter.forward(len(batch["index"])) as trace:
        after = run.task.predict(model, batch, temperature, trace)
    with meter.forward(len(batch["index"])) as dense_trace:
        before = run.task.predict(dense[1], batch, 0.0, dense_trace)
    layers, size = trace.layers["image"], len(batch["index"])
    return [
        pictures.Example(
            lines=[
                *filter(None, [run.task.asked(batch, row)]),
                f"dense: {run.task.answered(before[row])}",
                f"compressed: {run.task.answered(after[row])}",
            ],
            images=[pictures.readable_image(batch[name][row], MEAN, STD) for name in names],
            steps=[follow(layers, row + number * size) for number in range(len(names))],
            side=round((tokens_of(layers[0].entered, 0) - 1) ** 0.5),
        )
        for row in range(0, size, max(1, size // SHOWN))[:SHOWN]  # neighbours may share an image
    ]


def read_log(folder: Path) -> list[dict]:
    """The records of a run's `log.txt`."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
