"""Writes down the importance of tokens while a model prunes them, without the model knowing.

A model asks its rule of keeping how tokens lie, and each layer asks that layout to prune. `recording` gives the model a
rule whose layouts prune as ever and also keep what a token's importance is made of. Inference only.

Shapes: B samples, N prunable tokens that enter a layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from madtp.method.keep import Keep
from madtp.method.layout import Rectangle, Sequences
from madtp.method.packed import Packed
from madtp.method.pruning import importance_parts


class Importance(NamedTuple):
    """What a layer's importance is made of, section 3 of the paper: [B, N] each, 0 where there is no token."""

    self_attention: np.ndarray
    alignment: np.ndarray
    cls_attention: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """S, the mean of the three."""
        return sum(self) / 3


Tower = list[Importance]  # one for each layer


@contextmanager
def recording(model: nn.Module) -> Iterator[list[Tower]]:
    """While this is open, the towers of `model` that prune write down their importance, in the order they run."""
    rule, towers = model.keep, []
    model.keep = _recording_rule(rule, towers)
    try:
        yield towers
    finally:
        model.keep = rule


def _recording_rule(rule: Keep, towers: list[Tower]) -> Keep:
    def keep(x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
        tokens, layout = rule(x, own, align, together)
        towers.append([])
        return Sequences(tokens, _recorded(layout, towers[-1]))

    return keep


class _RecordedRectangle(Rectangle):
    def __init__(self, layout: Rectangle, tower: Tower):
        self.tower = tower

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        self.tower.append(_importance(scores, alignment))
        x, layout, kept = super().prune(x, scores, alignment, temperature, min_keep, protected)
        return x, _recorded(layout, self.tower), kept


class _RecordedPacked(Packed):
    def __init__(self, layout: Packed, tower: Tower):
        super().__init__(layout.counts, layout.device, layout.together, layout.readers)
        self.tower = tower

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        own = self.inside[:, 1:]
        self.tower.append(_importance(scores, self.rectangle(alignment[0], own), own))
        x, layout, kept = super().prune(x, scores, alignment, temperature, min_keep, protected)
        return x, _recorded(layout, self.tower), kept


def _recorded(layout: Rectangle, tower: Tower) -> Rectangle:
    """The same layout, writing into `tower` when it prunes."""
    return (_RecordedPacked if isinstance(layout, Packed) else _RecordedRectangle)(layout, tower)


def _importance(scores, alignment: Tensor, own: Tensor | None = None) -> Importance:
    with torch.autocast(alignment.device.type, enabled=False):
        parts = importance_parts(scores, alignment, own)
    return Importance(*(part.float().cpu().numpy() for part in parts))
