"""Runs one section: `python -m benchmarks.gpu kernels|tasks|memory|speed`; `benchmarks/gpu.sh` runs them all.

    kernels  attention with scores held to the block-wise path, and its gradients
    tasks    a training step and an evaluation of every task by every rule
    memory   the peak of what `speed` measures, without a clock
    speed    NLVR2 and CLIP L/14@336: batches 1, 8, 64, training, dense, both rules, plain, compiled; a layer's kernels

Every result is a line of JSON, written as it comes. Without a GPU all of it runs in small; what needs one is skipped by
name, as is what needs a package that is missing.
"""

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu.lines import Lines, Part

OUTPUT = "benchmarks/results/gpu.jsonl"


def parts(section: str, device: str, small: bool) -> Iterator[Part]:
    """What a section is made of; only its own modules are imported."""
    if section == "kernels":
        from benchmarks.gpu.kernels import parts as made
    elif section == "tasks":
        from benchmarks.gpu.tasks import parts as made
    elif section == "memory":
        from benchmarks.gpu.grid import memory_parts as made
    else:
        from benchmarks.gpu.grid import speed_parts as made
    return made(device, small)


def main(argv: list[str] | None = None) -> None:
    """Runs a section; what fails is a line of it, like everything else."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("section", choices=("kernels", "tasks", "memory", "speed"))
    parser.add_argument("--seconds", type=float, default=120, help="after which no part is begun")
    parser.add_argument("--output", default=OUTPUT, help="file that the lines are added to")
    args = parser.parse_args(argv)
    gpu = torch.cuda.is_available()
    path = Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = Lines(path, args.section, "cuda" if gpu else "cpu", time.time() + args.seconds)
    lines.begin()
    try:
        lines.run(parts(args.section, lines.device, small=not gpu))
    except ImportError as error:  # of a package that a whole section needs
        lines.write(part="all", skipped=f"needs {error.name}")


if __name__ == "__main__":
    logging.disable(logging.INFO)  # of this process, whose lines are JSON
    main()
