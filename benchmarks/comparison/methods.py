"""What the experiment compares: each method's rule of keeping tokens, and what of MADTP's guidance goes with it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from benchmarks.comparison.counts import Counted
from benchmarks.comparison.merging import TOME, TOME_WITHIN, Merger, Merging
from benchmarks.comparison.rules import Pruning, Static, Whole, by_one_score, by_tower, unguided
from benchmarks.comparison.schedules import Schedule, even, front, geometric
from benchmarks.comparison.shaped import Shaped
from madtp.method.keep import Coverage, Keep, keep_batch, keep_sample
from madtp.method.layout import RECTANGLE, Rectangle, Sequences

TOWERS = ("image", "text")
LONGER = 4
DEPTH = 6  # of the experiment's image towers


@dataclass(frozen=True)
class Method:
    """One way of keeping tokens.

    Attributes:
        title: for readers.
        keep: the rule.
        guided: towers that pay for their alignment with the learnable tokens.
        similarity: whether the similarity loss is part of training.
        learnable: number of learnable tokens where it is not the dense model's. None are trained before fine-tuning.
        longer: how many times the usual steps it is fine-tuned for.
        merger: the rule of merging whose own cost is counted.
    """

    title: str
    keep: Keep
    guided: tuple[str, ...] = TOWERS
    similarity: bool = True
    learnable: int | None = None
    longer: int = 1
    merger: Merger | None = None


def always(layout: Rectangle) -> Callable[[Tensor], Rectangle]:
    """The same layout for any tokens."""
    return lambda x: layout


def everywhere(layout: Rectangle) -> Keep:
    """The same layout for both towers."""
    return by_tower(always(layout), always(layout))


def sample_image(x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
    """The rule `sample` for images; texts, which alone may have padding, stay whole."""
    return keep_sample(x, own, align, together) if own is None else Sequences(x, Whole())


def merging(title: str, rule: Merger, schedule: Schedule) -> Method:
    """Merges image tokens by a rule and a schedule; texts stay whole."""
    keep = by_tower(Merging.by(schedule, rule), always(Whole()))
    return Method(title, keep, guided=(), similarity=False, merger=rule)


WHOLE, MADTP, STATIC = always(Whole()), always(RECTANGLE), Static.by(even)

COMPARED = {
    "madtp": Method("MADTP", keep_batch),
    "sample": Method("MADTP, kept per sample", keep_sample),
    "unguided": Method("without guidance", everywhere(Pruning(unguided)), guided=(), similarity=False),
    "unmerged": Method("without the merged token", everywhere(Pruning(merged=False))),
    "static": Method("static, by class attention", by_tower(STATIC, STATIC), guided=(), similarity=False),
    "static_image": Method("static in the image alone", by_tower(STATIC, WHOLE), guided=(), similarity=False),
    "random": Method("random", everywhere(Pruning(merged=False, random=True)), similarity=False),
    "random_image": Method("random in the image alone", by_tower(always(Pruning(random=True)), MADTP)),
    "tome": Method("ToMe as published", by_tower(Merging.by(even, TOME_WITHIN), WHOLE), guided=(), similarity=False),
    "tome_even": merging("ToMe, even", TOME, even),
    "tome_geometric": merging("ToMe, geometric", TOME, geometric),
    "tome_front": merging("ToMe, front", TOME, front),
    "tome_shaped": Method("ToMe, searched", Shaped(TOME, DEPTH), guided=(), similarity=False, merger=TOME),
    "coverage": Method("coverage", Coverage(DEPTH)),
}
ABLATED = {
    "self": Method("self-attention score alone", everywhere(Pruning(by_one_score("self")))),
    "token": Method("alignment score alone", everywhere(Pruning(by_one_score("token")))),
    "cls": Method("class attention score alone", everywhere(Pruning(by_one_score("cls")))),
    "k4": Method("4 learnable tokens", keep_batch, learnable=4),
    "k100": Method("100 learnable tokens", keep_batch, learnable=100),
    "image": Method("image pruned alone", by_tower(MADTP, WHOLE), guided=("image",)),
    "sample_image": Method("image pruned alone, kept per sample", sample_image, guided=("image",)),
    "unguided_image": Method(
        "image pruned alone, without guidance",
        by_tower(always(Pruning(unguided)), WHOLE),
        guided=(),
        similarity=False,
    ),
    "text": Method("text pruned alone", by_tower(WHOLE, MADTP), guided=("text",)),
}
ABLATED |= {
    f"{name}_long": replace(method, title=f"{method.title}, {LONGER} times the steps", longer=LONGER)
    for name, method in COMPARED.items()
    if name in ("madtp", "unguided", "tome")
}
VARIANTS = {  # of coverage
    "coverage_counts": Method("coverage, counts per sample", Counted(DEPTH)),
    "coverage_lengths": Method("coverage, lengths kept", Coverage(DEPTH, keep_norm=True)),
}
SCHEDULED = ("coverage", "coverage_counts", "tome_shaped")  # the shape of their schedule is searched without labels
METHODS = COMPARED | ABLATED | VARIANTS
