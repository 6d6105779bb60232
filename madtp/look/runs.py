"""Reads the folders that runs leave: configuration, log and evaluation."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from madtp.method.errors import UserError
from madtp.method.rules import BATCH
from madtp.run import config as configuration
from madtp.shared.run_files import CONFIG, EVALUATION, LOG

# The scores of each task, the one that stands for it first.
SCORES = {
    "nlvr": ("accuracy",),
    "vqa": ("accuracy",),
    "caption": ("CIDEr", "SPICE", "Bleu_4", "METEOR", "ROUGE_L", "exact_match"),
    "retrieval": ("txt_r1", "img_r1", "txt_r5", "img_r5", "r_mean"),
}
FILES = LOG, EVALUATION
NEEDED = {"percent", "temperature"}  # in every line of a log or an evaluation


@dataclass(frozen=True)
class PastRun:
    """A folder of output.

    Attributes:
        folder: where it is.
        config: as resolved by the run.
        records: the lines of its log, one per epoch.
        evaluation: what --evaluate wrote, or None.
    """

    folder: Path
    config: dict
    records: list[dict]
    evaluation: dict | None

    @cached_property
    def task(self) -> str:
        """Which task it is, by its configuration."""
        return configuration.task_of(str(self.folder / CONFIG))

    @property
    def best(self) -> dict:
        """The record of the best epoch, of the last where none counts as best, or of the evaluation alone."""
        found = [record for record in self.records if record.get("best")]
        return (found or self.records or [self.evaluation])[-1]

    @property
    def keep(self) -> str:
        """The rule by which the model prunes."""
        return self.best.get("keep", BATCH)

    @property
    def split(self) -> str:
        """The split to report: test, or validation where its answers are kept back."""
        return "test" if any(name.startswith("test_") and name[5:] in self.names for name in self.best) else "val"

    @property
    def names(self) -> tuple[str, ...]:
        """The scores that the task may have."""
        return SCORES["retrieval" if self.task.startswith("retrieval") else self.task]

    @property
    def scores(self) -> dict[str, float]:
        """The best epoch's scores, the one that stands for the task first."""
        named = {name: self.best.get(f"{self.split}_{name}") for name in self.names}
        return {name: score for name, score in named.items() if score is not None}

    def cost(self, name: str) -> float | None:
        """A number of the reported split's cost: `gflops`, `percent`, `percent_p10`, `samples_per_second`, ..."""
        return self.best.get(f"{self.split}_{name}", self.best.get(name))


def read(folders: Iterable[str | Path]) -> list[PastRun]:
    """The runs in some folders, or in the folders right below them, of which those that have yet to begin do not count.

    Of several in a folder those that cannot be read are named and left out.

    Raises:
        UserError: a folder has none that can be read.
    """
    runs = []
    for folder in map(Path, folders):
        inside = [folder] if _is_run(folder) else sorted(filter(_is_run, folder.glob("*/")), key=_age)
        inside = [run for run in inside if _has_written(run)] or inside
        if not inside:
            raise UserError(f"{folder}: no run, that is no {CONFIG} beside a {LOG} or {EVALUATION}; name another")
        runs += _read_all(inside)
    return runs


def _read_all(folders: Iterable[Path]) -> list[PastRun]:
    runs, faults = [], []
    for folder in folders:
        try:
            runs.append(_read(folder))
        except UserError as error:
            faults.append(error)
    if not runs:
        raise faults[0]
    for fault in faults:
        print(f"note: left out, {fault}", file=sys.stderr)
    return runs


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in FILES)


def _has_written(folder: Path) -> bool:
    return any((folder / name).is_file() and (folder / name).stat().st_size for name in FILES)


def _age(folder: Path) -> float:
    return (folder / CONFIG).stat().st_mtime


def _read(folder: Path) -> PastRun:
    task = configuration.task_of(str(folder / CONFIG))
    config = configuration.resolve(str(folder / CONFIG), task)
    records, evaluations = (_records(folder / name) for name in FILES)
    if not records and not evaluations:
        raise UserError(f"{folder}: its log is empty; wait for the first epoch to end")
    return PastRun(folder, config, records, evaluations[-1] if evaluations else None)


def _records(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; remove it or name another folder") from error
    if not all(isinstance(record, dict) and record.keys() >= NEEDED for record in records):
        needed = " and ".join(sorted(NEEDED))
        raise UserError(f"{path} is not from this project, whose lines have {needed}; remove it or name another folder")
    return records
