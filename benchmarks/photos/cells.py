"""The cells: which rule by which schedule at which cost, on which split; and in which order they are run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

from benchmarks.comparison.merging import IMPORTANT, RANDOM, TOME, TOME_LENGTHENED, Merger, pitome
from benchmarks.comparison.methods import METHODS, Method
from benchmarks.photos.world import MODEL
from madtp.method.rules import COVERAGE

RATIOS = (0.5, 0.3, 0.7, 0.8)
SCHEDULES = ("even", "geometric", "front", "madtp", "searched")  # the last two come from a MADTP cell and a search
REFERENCE = "image"  # MADTP on images alone, kept by `batch`
TAUGHT = "taught_"  # in front of a rule whose learnable tokens are trained alone first
OWN = (REFERENCE, "sample_image", "unguided_image", "static_image")  # rules that have a schedule of their own
COUNTED, BY_TEXT, LENGTHENED = "coverage_counts", "coverage_guided", "coverage_lengths"
TOME_TOO = "tome_lengths"
VARIANTS = (COUNTED, BY_TEXT, LENGTHENED, TOME_TOO)  # of coverage and ToMe, held against these alone
TUNED, TUNED_RATIOS = (COVERAGE, "tome", REFERENCE), (0.5, 0.7)  # what is fine-tuned beside the dense model
DISTILLED, GATED = "distilled", "gated"
LESSONS = ("task", DISTILLED, GATED)  # what it learns by: the task alone, a dense model's tokens too, or with a gate
TRAINED = "trained"
STARTS = ("dense", TRAINED)  # where fine-tuning begins: at the dense model, or where that was fine-tuned as long
TITLES = {
    COVERAGE: "coverage",
    COUNTED: "coverage, counts per photo",
    BY_TEXT: "coverage, guided by the text",
    LENGTHENED: "coverage, lengths kept",
    "tome": "ToMe",
    TOME_TOO: "ToMe, lengths kept",
    "pitome": "PiToMe",
    "important": "importance, merged",
    "random": "random, merged",
}
OWN_TITLES = dict(zip(OWN, ("MADTP", "MADTP, kept per sample", "MADTP without guidance", "static"), strict=True))
OF_RULE = dict.fromkeys(VARIANTS, ("searched",)) | {COUNTED: ("geometric", "searched")}  # of SCHEDULES
GUIDED = [f"{TAUGHT}{rule}" for rule in OWN[:2]]
RULES = ("dense", *TITLES, *OWN, *GUIDED)


def title_of(rule: str) -> str:
    """A rule for readers."""
    if rule.startswith(TAUGHT):
        return f"{title_of(rule.removeprefix(TAUGHT))}, learnable tokens trained"
    return ({"dense": "dense", "blind": "image-free"} | TITLES | OWN_TITLES)[rule]


def mergers(depth: int) -> dict[str, Merger]:
    """The rules that take any schedule, for an image tower of so many layers."""
    return {
        "tome": TOME,
        TOME_TOO: TOME_LENGTHENED,
        "pitome": pitome(depth),
        "important": IMPORTANT,
        "random": RANDOM,
    }


@dataclass(frozen=True)
class Cell:
    """The rules "dense" and "blind", the twin that never saw a photo, have p 0 and no schedule."""

    task: str
    split: str
    rule: str = "dense"
    schedule: str = ""
    p: float = 0.0
    seed: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """Names its line of the results."""
        parts = [self.task, self.split, self.rule, self.schedule, f"{self.p:g}" if self.p else ""]
        return "-".join(part for part in parts if part)

    @property
    def method(self) -> Method | None:
        """What it is, for rules that have a schedule of their own."""
        return METHODS.get(self.rule.removeprefix(TAUGHT))

    @property
    def guided(self) -> bool:
        """Whether it aligns with MADTP's learnable tokens, and learns by the similarity loss."""
        return not self.schedule and self.method is not None and self.method.similarity

    @property
    def trained(self) -> bool:
        """Whether something is trained before it is scored."""
        return self.rule.startswith(TAUGHT)

    @property
    def untuned(self) -> "Cell":
        """The same of the model as it is."""
        return self

    @property
    def teacher(self) -> "Cell | None":
        """The model whose tokens are a lesson; None where they are not."""
        return None

    @property
    def gated(self) -> bool:
        """Whether the loss reaches the choice of tokens."""
        return False

    @property
    def beginning(self) -> "Cell | None":
        """The model that was fine-tuned before, from which this one begins; None is the dense one as it is."""
        return None

    @property
    def told(self) -> dict[str, str]:
        """What else its line of the results says of it."""
        return {}

    @property
    def weights(self) -> str:
        """Names what is trained, whatever it is scored on."""
        return self.source.name.replace("-val", "", 1)

    @property
    def model(self) -> str:
        """The task whose model answers."""
        return MODEL[self.task]

    @property
    def source(self) -> "Cell":
        """The cell that trains the weights: on validation, by the task of the model."""
        return replace(self, task=self.model, split="val")

    @property
    def title(self) -> str:
        """For readers."""
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

    def on(self, split: str) -> "Cell":
        """The same on another split."""
        return replace(self, split=split)


@dataclass(frozen=True)
class Tuned(Cell):
    """A model that is fine-tuned, image tower included, by a rule that is in place from the first step."""

    seed: int = 1
    steps: int = 0
    lesson: str = LESSONS[0]
    start: str = STARTS[0]

    @property
    def name(self) -> str:
        further = [self.lesson] * (self.lesson != LESSONS[0]) + [self.start] * (self.start != STARTS[0])
        return "-".join([f"{super().name}-tuned-{self.steps}-{self.seed}", *further])

    @property
    def told(self) -> dict[str, str]:
        return {"lesson": self.lesson, "start": self.start}

    @property
    def teacher(self) -> "Tuned | None":
        return self._dense if self.lesson == DISTILLED else None

    @property
    def gated(self) -> bool:
        return self.lesson == GATED

    @property
    def beginning(self) -> "Tuned | None":
        return None if self.start == STARTS[0] else self._dense

    @property
    def _dense(self) -> "Tuned":
        """The dense model, fine-tuned for as many steps."""
        return Tuned(self.model, "val", seed=self.seed, steps=self.steps)

    @property
    def trained(self) -> bool:
        return True

    @property
    def untuned(self) -> Cell:
        return Cell(self.task, self.split, self.rule, self.schedule, self.p)

    @property
    def command(self) -> str:
        further = "" if self.lesson == LESSONS[0] else f" --lessons {self.lesson}"
        further += "" if self.start == STARTS[0] else f" --start {self.start}"
        return f"{self.untuned.command} --finetuned --steps {self.steps} --seeds {self.seed}{further}"


def plan(
    task: str,
    split: str,
    rules: Sequence[str] = (),
    schedules: Sequence[str] = (),
    ratios: Sequence[float] = (),
) -> list[Cell]:
    """The cells of a task in the order in which they are run, a cost at a time, those that others need first."""
    cells, own = [Cell(task, split)], (*OWN, *GUIDED) if MODEL[task] == task else OWN
    for p in ratios or RATIOS:
        cells += [Cell(task, split, rule, "", p) for rule in own if not rules or rule in rules]
        merging = [rule for rule in TITLES if not rules or rule in rules]
        for schedule, rule in product(schedules or SCHEDULES, merging):
            cell = Cell(task, split, rule, schedule, p)
            if schedule in OF_RULE.get(rule, SCHEDULES):
                cells += [cell.earlier, cell] if cell.earlier else [cell]
    return list(dict.fromkeys(cells))


def tuned_plan(
    task: str,
    split: str,
    steps: int,
    seeds: Sequence[int],
    best: Callable[[str, float], str],
    rules: Sequence[str] = (),
    schedules: Sequence[str] = (),
    ratios: Sequence[float] = (),
    lessons: Sequence[str] = LESSONS[:1],
    start: str = STARTS[0],
) -> list[Cell]:
    """What is fine-tuned, seed by seed: the dense model, and a cost at a time MADTP, its rivals and coverage.

    Args:
        task: one of the tasks.
        split: what is scored.
        steps: of training.
        seeds: of the order of the photos.
        best: the schedule of a rule and a cost, where none is named.
        rules: some alone.
        schedules: instead of the best one.
        ratios: instead of `TUNED_RATIOS`.
        lessons: of `LESSONS`; the dense model, which is the teacher of the others, learns by the task alone.
        start: of `STARTS`; the dense model has but one.
    """
    cells = []
    for seed in seeds:
        cells.append(Tuned(task, split, seed=seed, steps=steps))
        for p, rule, lesson in product(ratios or TUNED_RATIOS, rules or TUNED, lessons):
            if lesson == GATED and rule != COVERAGE:
                continue
            shapes = [""] if rule in OWN else (schedules or [best(rule, p)]) if rule in TITLES else []
            cells += [Tuned(task, split, rule, shape, p, seed, steps, lesson, start) for shape in shapes]
    return cells
