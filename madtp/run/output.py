"""What a run writes into its folder for people to read: logs, results, the environment it ran in."""

import json
import logging
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from madtp.cost.measure import SPREAD
from madtp.cost.processes import is_main
from madtp.method.errors import UserError
from madtp.shared.files import prepare_output, stop_printing, write_atomic
from madtp.shared.run_files import ENVIRONMENT, LOG, SAID

COST = (
    "gflops",
    "gflops_dense",
    "percent",
    "tokens",
    *(f"{name}_p{rank}" for name in ("percent", "tokens") for rank in SPREAD),
)
PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pillow")


class _Console(logging.Handler):
    """Writes above a progress bar, not through it. Where no more can be written that is said, and the run goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            print(end="", flush=True)
        except OSError as error:
            stop_printing()
            _say_unwritten("the standard output", error)


class _File(logging.FileHandler):
    """The log on the disk. Where no more of it can be written that is said once, and the run goes on."""

    said = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.said:
            _say_unwritten(self.baseFilename, sys.exc_info()[1])
        self.said = True

    def close(self) -> None:
        with suppress(OSError):  # what it could not write before
            super().close()


def _say_unwritten(what: str, error: Exception) -> None:
    with suppress(OSError):  # that may be full, too
        print(f"{what} is not written on: {error}", file=sys.stderr)


def progress_bar(batches: Iterable, name: str) -> tqdm:
    """The batches with a bar on the main process's terminal; none where the output is no terminal."""
    return tqdm(batches, desc=name, leave=False, disable=not (is_main() and sys.stderr.isatty()))


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Sends the main process's log to the terminal and, with the time in front, to `train.log`; the others' nowhere.

    Raises:
        UserError: that file cannot be written.
    """
    handlers = [logging.NullHandler()]
    if is_main():
        path = folder / SAID
        try:
            file = _File(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --output_dir") from error
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        handlers = [_Console(), file]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def write_environment(folder: Path, device: torch.device) -> None:
    """Writes `environment.txt`: the command, the code's commit, the versions and what the run computes on."""
    lines = [
        f"command {shlex.join([Path(sys.executable).name, *sys.argv])}",
        f"commit {_commit() or 'unknown'}",
        f"python {platform.python_version()}",
        *(f"{package} {metadata.version(package)}" for package in PACKAGES),
        f"device {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'cpu'}",
    ]
    write_atomic(folder / ENVIRONMENT, "\n".join(lines) + "\n")


def _commit() -> str:
    """The commit of the code that runs, with a `+` where files differ from it; empty outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def flatten(metrics: dict[str, dict], main: str) -> dict:
    """Metrics of several splits in one dict: `SPLIT_NAME`, but the cost on the split `main` under its own names."""
    flat = {}
    for split, scores in metrics.items():
        for name, value in scores.items():
            if name != "results":
                flat[name if split == main and name in COST else f"{split}_{name}"] = value
    return flat


def percent(share: float | None) -> float | None:
    """A share of dense as a percentage, as `percent` of the metrics."""
    return None if share is None else 100 * share


def readable(scores: dict) -> str:
    """The numbers of an evaluation in one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, int | float))


def start_log(folder: Path, epoch: int) -> None:
    """Makes `log.txt` end before `epoch`: empty for a new run, the finished epochs for a resumed one.

    Raises:
        UserError: there is one that cannot be read.
    """
    path = folder / LOG
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["epoch"] < epoch]
    except (ValueError, TypeError, LookupError, OSError) as error:
        raise UserError(f"{path} is no log of a run here, or damaged: {error}; move it out of the way") from error
    write_atomic(path, "".join(f"{line}\n" for line in kept))


def log_epoch(folder: Path, record: dict) -> None:
    """Adds one JSON line to `log.txt`; the file is replaced as a whole, so that it never ends within a line."""
    path = folder / LOG
    write_atomic(path, path.read_text(encoding="utf-8") + json.dumps(record) + "\n")


def write_results(folder: Path, name: str, results: list) -> None:
    """Writes the predictions of a split to `result/NAME.json`."""
    write_atomic(prepare_output(folder / "result") / f"{name}.json", json.dumps(results))
