"""What is known: one line of JSON for each cell that was run, added by any of several processes."""

import fcntl
import json
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch

from utils import prepare_output


def read_lines(files: Iterable[Path]) -> dict[str, dict]:
    """The records of some files, as far as there are any, by their name; a later one overrules."""
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return {record["name"]: record for record in map(json.loads, lines)}


def add_line(file: Path, record: dict) -> None:
    """Adds a record, and what it was made by and when."""
    prepare_output(file.parent)
    made = {"date": date.today().isoformat(), "cpu": processor()}
    made["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    with file.open("a") as lines:
        lines.write(json.dumps(record | made) + "\n")


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


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
