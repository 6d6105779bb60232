"""What the results say of a method at a cost: means and spreads over the seeds, as text."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.comparison.reporting import NOT_RUN, cost_name
from benchmarks.experiment.cells import BATCH
from benchmarks.experiment.ledger import finished

WORTH_A_WORD = 1.0  # percent of dense
NAMES = {"nlvr": "NLVR2", "vqa": "VQA", "caption": "captions"}  # of the tasks, for readers


class Results:
    """What is known, by cell.

    Args:
        folder: of the JSON lines.
        pictures: folder for the plots.

    Attributes:
        known: records by the name of their cell.
        as_they_are: records of dense models pruned without training, scored on validation.
        in_the_end: the same on the test split.
    """

    def __init__(self, folder: Path, pictures: Path):
        self.folder, self.known, self.pictures = folder, finished(folder), pictures
        self.as_they_are = list(finished(folder, "val").values())
        self.in_the_end = list(finished(folder, "test").values())

    def of(self, task: str, method: str, p: float) -> dict[int, dict]:
        """The records of a method that reached this cost, by seed."""
        return {record["seed"]: record for record in self._tried(task, method, p) if "scores" in record}

    def out_of_reach(self, task: str, method: str, p: float) -> int:
        """How many seeds of a method were run, but could not reach this cost."""
        return sum("out_of_reach" in record for record in self._tried(task, method, p))

    def _tried(self, *cell: str | float) -> list[dict]:
        return [record for record in self.known.values() if (record["task"], record["method"], record["p"]) == cell]

    def ratios(self, task: str) -> list[float]:
        """The p of which there is anything."""
        return sorted({record["p"] for record in self.known.values() if record["task"] == task and record["p"]})


def column(task: str, p: float) -> str:
    """A task and a cost, for readers."""
    return f"{NAMES[task]}, {cost_name(p)}"


def final(record: dict) -> dict:
    """The scores at the usual batch size."""
    return record["scores"][str(BATCH)]


def scores(records: dict[int, dict], batch: int = BATCH) -> str:
    """Mean and spread of the scores."""
    return spread([record["scores"][str(batch)]["score"] for record in records.values()])


def costs(records: dict[int, dict]) -> str:
    """Mean cost in percent of dense, with its spread where that is worth a word."""
    percents = [final(record)["percent"] for record in records.values()]
    return spread(percents) if max(percents) - min(percents) > WORTH_A_WORD else f"{mean(percents):.1f}"


def speed(records: dict[int, dict]) -> str:
    """Mean samples per second."""
    return f"{mean(final(record)['samples_per_second'] for record in records.values()):.0f}" if records else ""


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return NOT_RUN
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{deviation}".replace("-", "−")
