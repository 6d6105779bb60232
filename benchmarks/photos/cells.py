"""The cells: which rule by which schedule at which cost, on which split; and in which order they are run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.comparison.merging import IMPORTANT, RANDOM, TOME, Merger, pitome
from benchmarks.comparison.methods import METHODS, Method

RATIOS = (0.5, 0.3, 0.7, 0.8)
SCHEDULES = ("even", "geometric", "front", "madtp", "searched")  # the last two come from a MADTP cell and a search
REFERENCE = "image"  # MADTP on images alone, kept by `batch`
OWN = (REFERENCE, "sample_image", "unguided_image", "static_image")  # rules that have a schedule of their own
TITLES = {
    "coverage": "coverage",
    "tome": "ToMe",
    "pitome": "PiToMe",
    "important": "importance, absorbed",
    "random": "random, absorbed",
}
OWN_TITLES = dict(zip(OWN, ("MADTP", "MADTP, kept per sample", "MADTP without guidance", "static"), strict=True))


def title_of(rule: str) -> str:
    """A rule for readers."""
    return (TITLES | OWN_TITLES)[rule]


def mergers(depth: int) -> dict[str, Merger]:
    """The rules that take any schedule, for an image tower of so many layers."""
    return {"tome": TOME, "pitome": pitome(depth), "important": IMPORTANT, "random": RANDOM}


@dataclass(frozen=True)
class Cell:
    """The rules "dense" and "blind", the twin that never saw a photo, have p 0 and no schedule."""

    task: str
    split: str
    rule: str = "dense"
    schedule: str = ""
    p: float = 0.0

    @property
    def name(self) -> str:
        """Names its line of the results."""
        parts = [self.task, self.split, self.rule, self.schedule, f"{self.p:g}" if self.p else ""]
        return "-".join(part for part in parts if part)

    @property
    def method(self) -> Method | None:
        """What it is, for rules that have a schedule of their own."""
        return METHODS.get(self.rule)

    @property
    def title(self) -> str:
        """For readers."""
        if self.rule in ("dense", "blind"):
            return self.rule
        name = title_of(self.rule)
        return f"{name}, {self.schedule}" if self.schedule else name

    @property
    def command(self) -> str:
        """Runs this cell alone, after the dense model and what it takes a schedule from."""
        final = " --final" if self.split == "test" else ""
        if not self.p:
            alone = "--blind" if self.rule == "blind" else "--rules dense"
            return f"python -m benchmarks.photos --task {self.task} {alone}{final}"
        chosen = f"--rules {self.rule} --p {self.p:g}" + (f" --schedules {self.schedule}" if self.schedule else "")
        return f"python -m benchmarks.photos --task {self.task} {chosen}{final}"

    @property
    def earlier(self) -> "Cell | None":
        """The cell that has to be known first."""
        return Cell(self.task, self.split, REFERENCE, "", self.p) if self.schedule == "madtp" else None


def plan(
    task: str,
    split: str,
    rules: Sequence[str] = (),
    schedules: Sequence[str] = (),
    ratios: Sequence[float] = (),
) -> list[Cell]:
    """The cells of a task in the order in which they are run, a cost at a time, those that others need first."""
    cells = [Cell(task, split)]
    for p in ratios or RATIOS:
        cells += [Cell(task, split, rule, "", p) for rule in OWN if not rules or rule in rules]
        merging = [rule for rule in TITLES if not rules or rule in rules]
        for schedule, rule in product(schedules or SCHEDULES, merging):
            cell = Cell(task, split, rule, schedule, p)
            cells += [cell.earlier, cell] if cell.earlier else [cell]
    return list(dict.fromkeys(cells))
