"""Runs one cell: finds how much has to go for the cost, and scores every photo of the split.

The amount is found on photos of the split itself, which takes no labels and is the same for all rules. A schedule that
is searched for is chosen on training photos, by how little it moves the dense model's outputs: no label, and nothing
that is scored.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.comparison.counts import Counted
from benchmarks.comparison.gate import Gated
from benchmarks.comparison.guided import Foretelling, Guided
from benchmarks.comparison.merging import Merging
from benchmarks.comparison.methods import WHOLE
from benchmarks.comparison.rules import by_tower
from benchmarks.comparison.schedules import SHAPES, Schedule, Steps, like
from benchmarks.photos.cells import BY_TEXT, COUNTED, LENGTHENED, Cell, mergers
from benchmarks.photos.guides import guides_of
from benchmarks.photos.machine import Machine
from benchmarks.photos.results import SCORE
from benchmarks.photos.subject import SUBJECTS
from benchmarks.photos.world import MODEL, RERANKING, Photo, Places, read_split
from madtp.cost import schedule as product
from madtp.cost.temperature import RatioOutOfReach, calibrate
from madtp.cost.trace import Trace
from madtp.method.keep import keep_batch
from madtp.method.merged import Merged
from utils import UserError, set_seed, write_atomic

STEERING = 96  # photos on which the cost is measured while its amount is looked for, where it differs by photo
SEARCHED = 64  # training photos on which schedules are compared
TIMED = {1: 16, 32: 64}  # photos of which the speed is measured, by the size of their batches
TOLERANCE = 0.005  # of the cost asked for
GEOMETRIC = 1.0  # the shape of coverage's own schedules by which every layer drops the same share
OWN_SHAPES = {"geometric": GEOMETRIC} | {f"shape {b:g}": b for b in product.SHAPES if b != GEOMETRIC}
MAIN = SCORE | {"vqa": "right"}  # the scores that pair


class Bench:
    """The subject of a task on a split, and what all cells share.

    Args:
        places: where everything is.
        task: one of the tasks.
        split: what is scored; "test" leaves out what was looked at.
        machine: what it runs on.
        most: photos that are scored, from the first; 0 is all.
        blind: the twin that never saw a photo.
    """

    def __init__(self, places: Places, task: str, split: str, machine: Machine, most: int = 0, blind: bool = False):
        self.places, self.task, self.split, self.machine = places, task, split, machine
        photos = read_split(places, task, split, final=split == "test")
        self.subject = SUBJECTS[task](places, photos[: most or None], machine, blind)
        self.mergers = mergers(len(self.subject.tower.blocks))

    @cached_property
    def steering(self) -> list[Tensor]:
        """Photos of the split, evenly spread."""
        photos = self.subject.photos
        chosen = photos[:: max(1, len(photos) // STEERING)][:STEERING]
        return list(self.subject.images(chosen))

    @cached_property
    def training(self) -> tuple[list[Photo], list[Tensor], list[Tensor]]:
        """Training photos, evenly spread, their pictures, and what the dense model makes of them."""
        photos = read_split(self.places, self.task, "train")
        photos = photos[:: max(1, len(photos) // SEARCHED)][:SEARCHED]
        images = list(self.subject.images(photos))
        with self.on_trial(Cell(self.task, self.split)):
            dense = [self.subject.outputs(self.subject.encode(*one), some) for *one, some in self.parts(photos, images)]
        return photos, images, dense

    @cached_property
    def guides(self) -> Tensor:
        """What foretells the text's attention, layer by layer."""
        return guides_of(self.places, self.machine)

    @staticmethod
    def parts(photos: Sequence[Photo], images: Iterable[Tensor], amount: float = 0.0) -> Iterator[tuple]:
        """Pictures batch by batch, the amount, and their photos."""
        start = 0
        for image in images:
            yield image, amount, photos[start : start + len(image)]
            start += len(image)

    @contextmanager
    def on_trial(self, cell: Cell, schedule: Schedule | float | None = None) -> Iterator[None]:
        """The subject with a cell's rule in place; of coverage with a count for every photo the schedule is a shape."""
        subject = self.subject
        if cell.rule == COUNTED:
            subject.model.keep = Counted(len(subject.tower.blocks), schedule)
        elif schedule is not None and cell.rule in self.mergers:
            subject.merger, subject.guided = self.mergers[cell.rule], ()
            subject.model.keep = by_tower(Merging.by(schedule, subject.merger), WHOLE)
        elif schedule is not None:
            layout, subject.merger = self.layout_of(cell), Foretelling() if cell.rule == BY_TEXT else None
            subject.model.keep = by_tower(
                lambda x: layout(Steps(schedule, x.shape[1] - 1, keep_norm=cell.rule == LENGTHENED)), WHOLE
            )
        elif cell.method is not None:
            subject.model.keep, subject.guided = cell.method.keep, cell.method.guided
        set_seed(1)
        try:
            yield
        finally:
            subject.model.keep, subject.merger, subject.guided = keep_batch, None, ("image",)

    def layout_of(self, cell: Cell) -> Callable[[Steps], Merged]:
        """Coverage, or the variant of it that a cell is about."""
        if cell.rule == BY_TEXT:
            return partial(Guided, guides=self.guides)
        return Gated if cell.gated else Merged

    def share(self, images: Sequence[Tensor], amount: float) -> float:
        """The cost of some photos in shares of dense."""
        spent = dense = 0.0
        set_seed(1)  # so that chance, where it decides, decides alike at every amount
        for image in images:
            trace = Trace()
            self.subject.encode(image, amount, trace)
            spent += len(image) * float(np.mean(self.subject.cost(trace)))
            dense += len(image) * float(np.mean(self.subject.cost(trace.dense())))
        return spent / dense

    def amount(self, p: float, scheduled: bool, start: float | None = None) -> float:
        """How much has to go for a cost of 1 - p by the rule on trial, looked for from `start`.

        Raises:
            RatioOutOfReach: more than there is.
        """
        images = [self.steering[0][:1]] if scheduled else self.steering
        cost = lambda amount: self.share(images, amount)  # noqa: E731
        if cost(math.inf) > (1 - p) * (1 + TOLERANCE):
            raise RatioOutOfReach(f"p {p:g} is out of reach: {cost(math.inf):.1%} of dense is the least")
        return calibrate(cost, 1 - p, start or (0.05 if scheduled else 1.0), tolerance=TOLERANCE * (1 - p))

    def search(self, cell: Cell) -> dict[str, float]:
        """How far schedules of each shape move the dense outputs at a cell's cost."""
        photos, images, dense = self.training
        moved = {}
        for name, shape in shapes(cell.rule).items():
            with self.on_trial(cell, shape):
                try:
                    amount = self.amount(cell.p, alike(cell))
                except RatioOutOfReach:
                    continue
                found = [
                    self.subject.outputs(self.subject.encode(image, amount), some)
                    for image, amount, some in self.parts(photos, images, amount)
                ]
            moved[name] = self.subject.moved(torch.cat(found), torch.cat(dense))
        if not moved:
            raise RatioOutOfReach(f"p {cell.p:g} is out of reach of every schedule")
        return moved

    def schedule(self, cell: Cell, known: dict[str, dict]) -> tuple[Schedule | float | None, dict]:
        """A cell's schedule, and what there is to say of where it comes from; what was searched for is known."""
        if cell.schedule == "madtp":
            earlier = known[cell.earlier.name]
            if "tokens" not in earlier:
                raise RatioOutOfReach("MADTP does not get there")
            dense = self.subject.tower.shape.length - 1
            return like([(left - 1) / dense for left in earlier["tokens"]]), {}
        if cell.schedule == "searched":
            found = known.get(cell.untuned.name) or {}
            moved = found.get("moved") or self.search(cell)
            shape = min(moved, key=moved.get)
            return shapes(cell.rule)[shape], {"shape": shape, "moved": moved}
        return shapes(cell.rule).get(cell.schedule), {}

    def run(self, cell: Cell, known: dict[str, dict]) -> dict:
        """What there is to know of a cell."""
        try:
            schedule, told = self.schedule(cell, known)
            with self.on_trial(cell, schedule):
                amount = self.amount(cell.p, alike(cell)) if cell.p else 0.0
                return {"amount": amount, **told, **self.scored(cell, amount), "rates": self.rates(amount)}
        except RatioOutOfReach as error:
            return {"out_of_reach": str(error)}

    def scored(self, cell: Cell, amount: float) -> dict:
        """Scores, costs and tokens of all photos by the rule on trial."""
        subject, readings, parts = self.subject, [], []
        set_seed(1)
        for image, _, photos in self.parts(subject.photos, self.all_images()):
            trace = Trace()
            readings += subject.read(subject.encode(image, amount, trace), photos)
            costs = [subject.cost(trace), subject.cost(trace.dense())]
            costs += [subject.tower_cost(trace), subject.tower_cost(trace.dense())]
            lefts = [layer.left for layer in trace.layers["image"]]
            parts.append((len(image), [float(np.mean(one)) for one in [*costs, *lefts]]))
        weights = np.array([number for number, _ in parts], dtype=float)
        means = weights @ np.array([values for _, values in parts]) / weights.sum()
        scores = subject.scores(readings)
        told = {
            **{"gflops": means[0], "percent": 100 * means[0] / means[1], "image_percent": 100 * means[2] / means[3]},
            **{"tokens": [round(left, 2) for left in means[4:]], "count": len(subject.photos)},
            **{"scores": summary(scores), "photos": [round(float(one), 2) for one in scores[MAIN[self.task]]]},
        }
        if "questions" in scores:
            told["questions"] = scores["questions"].tolist()
        return told | self.changed(cell, readings)

    def all_images(self) -> list[Tensor]:
        """The pictures of the split, batch by batch; those of the last run are kept."""
        if not hasattr(self, "_images"):
            self._images = list(self.subject.images(self.subject.photos))
        return self._images

    def changed(self, cell: Cell, readings: list) -> dict:
        """Of answers and captions, how many differ from the dense model's; they themselves are no results."""
        if not isinstance(readings[0], str | list):
            return {}
        folder = self.places.output / "readings"
        ours, dense = (self.reading_file(folder, one) for one in (cell, Cell(self.task, self.split)))
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(ours, json.dumps(readings))
        if not dense.exists():
            return {}
        whole = json.loads(dense.read_text())
        if len(whole) != len(readings):
            return {}
        flat = [list(one) if isinstance(one, list) else [one] for one in (*readings, *whole)]
        pairs = zip(sum(flat[: len(whole)], []), sum(flat[len(whole) :], []), strict=True)
        return {"changed": 100 * float(np.mean([one != other for one, other in pairs]))}

    @staticmethod
    def reading_file(folder: Path, cell: Cell) -> Path:
        """Where a cell's captions or answers are kept."""
        return folder / f"{cell.name}.json"

    def rates(self, amount: float) -> dict[str, float]:
        """Photos that the image tower encodes in a second of the processor's own time, or of a GPU's, by batch size."""
        rates = {}
        for batch, number in TIMED.items():
            images = list(self.subject.images(self.subject.photos[:number], batch))
            self.subject.encode(images[0], amount)
            started = self.machine.seconds()
            for image in images:
                self.subject.encode(image, amount)
            rates[str(batch)] = sum(map(len, images)) / (self.machine.seconds() - started)
        return rates


def shapes(rule: str) -> dict[str, Schedule | float]:
    """The schedules of a rule that a search compares."""
    return OWN_SHAPES if rule == COUNTED else SHAPES


def alike(cell: Cell) -> bool:
    """Whether as many tokens are left of every photo, so that one tells what all cost."""
    return bool(cell.schedule) and cell.rule != COUNTED


def summary(scores: dict[str, np.ndarray | float]) -> dict[str, float]:
    """Scores over all photos."""
    if "questions" in scores:
        return {"accuracy": float(scores["right"].sum() / scores["questions"].sum())}
    return {name: float(np.mean(values)) for name, values in scores.items()}


def needs(places: Places, task: str, blind: bool = False) -> None:
    """Raises a UserError where a dense model is not trained yet."""
    for own in ("retrieval", "caption") if task == RERANKING else (MODEL[task],):
        file, flag = places.dense(own, blind), " --blind" if blind else ""
        if not file.exists():
            raise UserError(f"no {file}: `python -m benchmarks.photos --dense {own}{flag}` trains it")
