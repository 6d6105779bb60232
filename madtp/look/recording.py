"""Writes down the importance of tokens while a model prunes them, without the model knowing.

A model asks its rule of keeping how tokens lie, and each layer asks that layout to prune. `recording` gives the model a
rule whose layouts prune as ever and also keep what a token's importance is made of. Inference only.

Shapes: B samples, N prunable tokens that enter a layer.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from madtp.method import coverage
from madtp.method.attention import AttentionScores
from madtp.method.keep import Keep
from madtp.method.layout import Rectangle, Sequences
from madtp.method.merged import Merged
from madtp.method.packed import Packed
from madtp.method.pruning import importance_parts


class Importance(NamedTuple):
    """How important a layer's tokens are, 0 where there is no token: [B, N], or [N] of one sample.

    Attributes:
        total: S.
        parts: what S is the mean of, by name: of section 3 of the paper; nothing where it is made of one alone.
    """

    total: np.ndarray
    parts: Mapping[str, np.ndarray]

    def of(self, sample: int) -> "Importance":
        """One sample's own."""
        return Importance(self.total[sample], {name: part[sample] for name, part in self.parts.items()})


TowerImportance = list[Importance]  # one for each layer


@contextmanager
def recording(model: nn.Module) -> Iterator[list[TowerImportance]]:
    """While this is open, the towers of `model` that prune write down their importance, in the order they run."""
    rule, towers = model.keep, []
    model.keep = _Recording(rule, towers)
    try:
        yield towers
    finally:
        model.keep = rule


@dataclass(frozen=True)
class _Recording:
    """A rule that makes the layouts of another one, which write down what they do."""

    rule: Keep
    towers: list[TowerImportance]

    @property
    def texts(self) -> bool:
        return getattr(self.rule, "texts", True)

    def __call__(self, x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
        tokens, layout = self.rule(x, own, align, together)
        self.towers.append([])
        return Sequences(tokens, _recorded(layout, self.towers[-1]))


class _RecordedRectangle(Rectangle):
    def __init__(self, layout: Rectangle, tower: TowerImportance):
        self.tower = tower

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        self.tower.append(_importance(scores, alignment))
        x, layout, kept = super().prune(x, scores, alignment, temperature, min_keep, protected)
        return x, _recorded(layout, self.tower), kept


class _RecordedPacked(Packed):
    def __init__(self, layout: Packed, tower: TowerImportance):
        super().__init__(layout.counts, layout.device, layout.together, layout.readers)
        self.tower = tower

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        own = self.inside[:, 1:]
        self.tower.append(_importance(scores, self.rectangle(alignment[0], own), own))
        x, layout, kept = super().prune(x, scores, alignment, temperature, min_keep, protected)
        return x, _recorded(layout, self.tower), kept


class _RecordedMerged(Merged):
    def __init__(self, layout: Merged, tower: TowerImportance):
        super().__init__(layout.schedule, layout.sizes_of_tokens, layout.places)
        self.tower = tower

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        self.tower.append(Importance(_array(coverage.importance(scores.cls_attention)), {}))
        x, layout, kept = super().prune(x, scores, alignment, temperature, min_keep, protected)
        return x, _recorded(layout, self.tower), kept


RECORDED = {Packed: _RecordedPacked, Merged: _RecordedMerged, Rectangle: _RecordedRectangle}  # the last is any


def _recorded(layout: Rectangle, tower: TowerImportance) -> Rectangle:
    """The same layout, writing into `tower` when it prunes."""
    return next(recorded for kind, recorded in RECORDED.items() if isinstance(layout, kind))(layout, tower)


def _importance(scores: AttentionScores, alignment: Tensor, own: Tensor | None = None) -> Importance:
    """MADTP's."""
    with torch.autocast(alignment.device.type, enabled=False):
        parts = list(map(_array, importance_parts(scores, alignment, own)))
    return Importance(sum(parts) / 3, dict(zip(("self_attention", "alignment", "cls_attention"), parts, strict=True)))


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
