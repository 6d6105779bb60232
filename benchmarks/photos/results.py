"""What the results say: records by cell, differences paired by photo, shares of what the photos are worth."""

from functools import cached_property
from pathlib import Path

from benchmarks.comparison.ledger import read_lines
from benchmarks.comparison.statistics import Difference, paired_difference
from benchmarks.photos.cells import LESSONS, REFERENCE, SCHEDULES, STARTS, Cell
from benchmarks.photos.world import ALL_TASKS, RERANKING, STATEMENTS
from utils import UserError

RECALL = ("txt_r1", "img_r1")
SCORE = {"retrieval": "r_mean", "caption": "CIDEr", "vqa": "accuracy", STATEMENTS: "told_apart", RERANKING: "r_mean"}
READ_AS = {"r_mean": "mean recall", "told_apart": "told apart"}  # for readers
READ_AS |= {"caption": "captions", "vqa": "questions", RERANKING: "re-ranking"}
FURTHER = {"retrieval": RECALL, "caption": ("Bleu_4",), "vqa": (), STATEMENTS: (), RERANKING: RECALL}
TOP = (1, 5, 10)


class Results:
    """What is known, of models as they are and, in `tuned`, of models that were fine-tuned under their rule.

    Args:
        folder: of the JSON lines.
        pictures: folder for the plots.
        final: the test split instead of the one that choices are made on.
    """

    def __init__(self, folder: Path, pictures: Path, final: bool = False):
        self.folder, self.pictures, self.split = folder, pictures, "test" if final else "val"
        ending = "_final" if final else ""
        self.known = read_lines(folder / f"photos_{task}{ending}.jsonl" for task in ALL_TASKS)
        self.tuned = read_lines(folder / f"photos_{task}_tuned{ending}.jsonl" for task in ALL_TASKS)

    def of(self, task: str, rule: str, schedule: str = "", p: float = 0.0) -> dict | None:
        """The record of a cell, None where it was not run."""
        return self.known.get(Cell(task, self.split, rule, schedule, p).name)

    def at(self, task: str, p: float) -> list[dict]:
        """The records of a cost, in the order in which they were run."""
        return [one for one in self.known.values() if one["task"] == task and one["p"] == p and p]

    def ratios(self, task: str) -> list[float]:
        """The p of which there is anything."""
        return sorted({one["p"] for one in self.known.values() if one["task"] == task and one["p"]})

    def dense(self, task: str) -> dict | None:
        """The dense model's record."""
        return self.of(task, "dense")

    def blind(self, task: str) -> float | None:
        """The score without the photo: that of the twin, or of chance where features alone are compared."""
        if task in ("retrieval", RERANKING):
            dense = self.dense(task)
            return dense and chance(dense["count"])
        if task == STATEMENTS:
            return 50.0  # of pairs
        record = self.of(task, "blind")
        return record and score(record)

    def against(self, ours: dict, theirs: dict | None) -> Difference | None:
        """The difference of two records, paired by photo; None where they are of other photos."""
        if theirs is None or "photos" not in theirs or len(theirs["photos"]) != len(ours["photos"]):
            return None
        return paired_difference(ours["photos"], theirs["photos"], ours.get("questions"))

    def worth(self, record: dict) -> float | None:
        """(score - blind) / (dense - blind), in percent."""
        dense, blind = self.dense(record["task"]), self.blind(record["task"])
        if dense is None or blind is None:
            return None
        return 100 * (score(record) - blind) / (score(dense) - blind)

    def reference(self, record: dict) -> dict | None:
        """MADTP at the same cost."""
        return self.of(record["task"], REFERENCE, "", record["p"])

    @cached_property
    def comparisons(self) -> int:
        """Differences that the tables give an interval of: to the dense model and to MADTP."""
        reached = [one for one in self.known.values() if one["p"] and "photos" in one]
        return 2 * len(reached) - sum(one["rule"] == REFERENCE for one in reached)


def best_schedule(known: dict[str, dict], task: str, rule: str, p: float) -> str:
    """The schedule by which a rule scores best at a cost, untuned and on validation.

    Raises:
        UserError: no schedule was run.
    """
    names = [Cell(task, "val", rule, schedule, p).name for schedule in SCHEDULES]
    records = [known[name] for name in names if "scores" in known.get(name, {})]
    if not records:
        way_out = Cell(task, "val", rule, SCHEDULES[1], p).command
        raise UserError(f"{rule} has no schedule at p {p:g} yet: name one by --schedules, or run `{way_out}` first")
    return max(records, key=score)["schedule"]


def score(record: dict) -> float:
    """The one number that a task is judged by."""
    return record["scores"][SCORE[record["task"]]]


def score_name(task: str) -> str:
    """That number, for readers."""
    return READ_AS.get(SCORE[task], SCORE[task])


def task_name(task: str) -> str:
    """A task, for readers."""
    return READ_AS.get(task, task)


def cell_of(record: dict) -> Cell:
    """The cell that a record is of."""
    return Cell(record["task"], record["split"], record["rule"], record["schedule"], record["p"])


def title(record: dict) -> str:
    """A record for readers, with the shape that a search found."""
    name = cell_of(record).title
    return f"{name} ({record['shape']})" if "shape" in record else name


def lesson(record: dict) -> str:
    """What a fine-tuned model learned by, and where it began unless that was the dense model as it is."""
    name = record.get("lesson", LESSONS[0])
    return name if record.get("start", STARTS[0]) == STARTS[0] else f"{name}_{record['start']}"


def chance(photos: int) -> float:
    """Mean recall of features that know nothing, in percent: each way k of so many photos."""
    return 100 * sum(TOP) / len(TOP) / photos
