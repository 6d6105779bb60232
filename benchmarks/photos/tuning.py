"""Fine-tunes dense models under a rule, image tower included: the same steps in the same order for every rule.

    python -m benchmarks.photos --task retrieval --finetuned

A rule's schedule and amount are in place from the first step. Since the weights move, the amount is found anew at every
checkpoint, and in the end, so that what is scored costs what was asked for. MADTP's learnable tokens can also be
trained alone, everything else as the dense model has it.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.photos.cells import Cell, Tuned
from benchmarks.photos.dense import is_guidance
from benchmarks.photos.losses import Losses, losses_of
from benchmarks.photos.results import SCORE
from benchmarks.photos.running import Bench, alike, summary
from benchmarks.photos.training import Batch, Recipe, batches_of, optimizer_of, short, take_step
from benchmarks.photos.world import Photo, read_split
from madtp.cost.temperature import RatioOutOfReach
from madtp.method.distillation import Teacher
from madtp.shared.weights import checkpoint
from utils import UserError, set_seed

STRETCH = 50  # steps between checkpoints
WATCHED = 200  # photos that are scored at a checkpoint
LEARNABLE = ("query_model", "space_dict")  # random in a dense model, so that they learn faster than what is not

logger = logging.getLogger("photos")


@dataclass(frozen=True)
class Course:
    """What is trained, and how long.

    Attributes:
        recipe: how.
        steps: of training.
        left: beginnings of the names of what stays as it is; an empty one is everything but the guidance.
    """

    recipe: Recipe
    steps: int
    left: tuple[str, ...] = ()

    def trains(self, name: str) -> bool:
        """Whether a parameter is trained."""
        return "_m." not in name and (is_guidance(name) or not name.startswith(self.left))


RECIPES = {
    "retrieval": Recipe(32, 1, 3e-5, LEARNABLE, 2e-3, 10),
    "caption": Recipe(32, 2, 3e-5, LEARNABLE, 2e-3, 10),
    "vqa": Recipe(32, 2, 3e-5, LEARNABLE, 2e-3, 10),
}
LEFT = {"retrieval": ("text_encoder.", "text_proj.", "itm_head."), "caption": (), "vqa": ()}  # no rule prunes texts
ALONE = Course(Recipe(8, 1, 2e-3, LEARNABLE, 2e-3, 10), 500, ("",))


def course_of(cell: Cell) -> Course:
    """How a cell's model is trained."""
    return Course(RECIPES[cell.model], cell.steps, LEFT[cell.model]) if isinstance(cell, Tuned) else ALONE


def run(bench: Bench, cell: Cell, known: dict[str, dict]) -> dict:
    """What there is to know of a cell whose model is trained first."""
    course = course_of(cell)
    try:
        schedule, told = bench.schedule(cell, known)
        with bench.on_trial(cell, schedule), as_it_was(bench.subject.model, course):
            amount, curve = Tuning(bench, cell, course).to_the_end()
            found = {"amount": amount, **told, "steps": course.steps, "curve": curve}
            return found | bench.scored(cell, amount) | {"rates": bench.rates(amount)}
    except RatioOutOfReach as error:
        return {"out_of_reach": str(error)}


@contextmanager
def as_it_was(model: nn.Module, course: Course) -> Iterator[None]:
    """Lets gradients reach what a course trains, and puts the weights back in the end."""
    parameters = dict(model.named_parameters())
    wanted = {name: parameter.requires_grad for name, parameter in parameters.items()}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items() if course.trains(name)}
    for name, parameter in parameters.items():
        parameter.requires_grad_(course.trains(name))
    try:
        yield
    finally:
        model.load_state_dict(before, strict=False)
        for name, parameter in parameters.items():
            parameter.requires_grad_(wanted[name])


@cache
def trained_by(bench: Bench) -> tuple[list[Photo], Losses]:
    """The training photos of a bench, and the losses; all its cells share them."""
    photos = read_split(bench.places, bench.task, "train")
    photos = short(photos) if bench.task == "caption" else photos
    return photos, losses_of(bench.subject, photos)


class Tuning:
    """A model on its way, from checkpoint to checkpoint; what was stopped goes on at the last one.

    Args:
        bench: its subject's model is trained in place, by the rule that is on trial.
        cell: what is trained for.
        course: how.

    Attributes:
        file: of the checkpoint; a model that is trained to the end stays there for the test split.
        amount: how much goes.
        curve: score of some photos, amount, loss and seconds, checkpoint by checkpoint; the first is before training.
    """

    def __init__(self, bench: Bench, cell: Cell, course: Course):
        self.bench, self.cell, self.course = bench, cell, course
        self.model = bench.subject.model
        self.optimizer = optimizer_of(self.model, course.recipe)
        self.file: Path = bench.places.output / "tuned" / f"{cell.weights}.pth"
        self.amount, self.curve = None, []
        if self.file.exists():
            self._resume()
        elif cell.beginning is not None:
            self.model.load_state_dict(self._trained(cell.beginning), strict=False)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.curve[-1]["step"] if self.curve else 0

    def to_the_end(self) -> tuple[float, list[dict]]:
        """Trains what is left; how much has to go then for the cost asked for, and the learning curve.

        Raises:
            UserError: it is not trained to the end, and what is to be scored trains no model.
            RatioOutOfReach: nor can it be.
        """
        source = self.cell.source
        if self.cell != source and self.step < self.course.steps:
            self._amount()  # raises where nobody could train it
            raise UserError(f"no {self.file} yet: `{source.command}` trains it")
        if self.step < self.course.steps:
            photos, losses = trained_by(self.bench)
            losses.teacher = self._teacher()
            if not self.curve:
                self.amount = self._amount()
                self.curve.append({"step": 0, "score": self._score(), "amount": self.amount, "seconds": 0.0})
            while self.step < self.course.steps:
                self._stretch(photos, losses)
        return self._amount(), self.curve

    def _teacher(self) -> Teacher | None:
        """The dense tower that this cell learns from, if it does.

        Raises:
            UserError: nobody has trained it.
        """
        if self.cell.teacher is None:
            return None
        teacher, own = Teacher(self.bench.subject.tower), "visual_encoder."
        found = self._trained(self.cell.teacher)
        weights = {name.removeprefix(own): value for name, value in found.items() if name.startswith(own)}
        teacher.tower.load_state_dict(weights, strict=False)
        return teacher

    def _trained(self, cell: Cell) -> dict[str, Tensor]:
        """The weights of a model that was fine-tuned before.

        Raises:
            UserError: nobody has trained it.
        """
        file = self.bench.places.output / "tuned" / f"{cell.weights}.pth"
        if not file.exists():
            raise UserError(f"no {file} yet: `{cell.command}` trains it")
        return torch.load(file, weights_only=True)["model"]

    def _amount(self) -> float:
        return self.bench.amount(self.cell.p, alike(self.cell), self.amount) if self.cell.p else 0.0

    def _stretch(self, photos: Sequence[Photo], losses: Losses) -> None:
        """Trains up to the next checkpoint."""
        started, first = self.bench.machine.seconds(), self.step
        last = min(first + STRETCH, self.course.steps)
        recipe, similar = self.course.recipe, self.cell.guided
        set_seed(1000 * self.cell.seed + first)  # so that a run that was stopped draws what it would have drawn
        self.model.train()
        sums = 0.0
        for step, batch in enumerate(islice(self._batches(photos), first, last), first):
            image = self._images(photos, batch)
            with self.bench.machine.mixed():
                loss = losses.loss(image, batch, self.amount, similar)
            loss.backward()
            take_step(self.model, self.optimizer, recipe, step, self.course.steps)
            sums += loss.item()
        self.model.eval()
        self.amount = self._amount()
        told = {"step": last, "loss": sums / (last - first), "score": self._score(), "amount": self.amount}
        self.curve.append(told | {"seconds": self.bench.machine.seconds() - started})
        logger.info("%s: %s", self.cell.name, self.curve[-1])
        self._save()

    def _batches(self, photos: Sequence[Photo]) -> Iterator[Batch]:
        """Batches without end, in an order that the seed alone decides."""
        generator = torch.Generator().manual_seed(self.cell.seed)
        while True:
            yield from batches_of(photos, self.course.recipe, generator)

    def _images(self, photos: Sequence[Photo], batch: Batch) -> Tensor:
        some = [photos[number] for number in batch[0]]
        return torch.cat(list(self.bench.subject.images(some)))

    def _score(self) -> float:
        """Of the first photos of the split."""
        subject, photos = self.bench.subject, self.bench.subject.photos[:WATCHED]
        readings = []
        for image, amount, some in self.bench.parts(photos, subject.images(photos), self.amount):
            readings += subject.read(subject.encode(image, amount), some)
        return summary(subject.scores(readings))[SCORE[subject.task]]

    def _save(self) -> None:
        done = self.step == self.course.steps
        own = {name: value.detach() for name, value in self.model.named_parameters() if value.requires_grad}
        optimizer = None if done else self.optimizer.state_dict()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.file, model=own, optimizer=optimizer, curve=self.curve, amount=self.amount)

    def _resume(self) -> None:
        found = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(found["model"], strict=False)
        self.amount, self.curve = found["amount"], found["curve"]
        if found["optimizer"] is not None:
            self.optimizer.load_state_dict(found["optimizer"])
