"""Tokens that stand for several patches each: a rectangle that carries their sizes. Prunes by coverage.

Attention to a token counts it as often as it has patches: the logarithm of its size is added to the logits, in the
tower itself and wherever another sequence attends to these tokens. Copies of a token merged into one change nothing.

Shapes: B samples, L tokens, F of them in front that always stay (the class token, registers), N = L - F, D width, H
heads, E = D / H, n tokens kept.
"""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from madtp.method import compiled, coverage
from madtp.method.attention import AttentionScores, attend, attend_with_class
from madtp.method.layout import Rectangle, Sequences
from madtp.method.precision import accumulator
from madtp.method.pruning import Kept
from madtp.method.rows import followed

HIDDEN = 1e-30  # the size of a token that a mask hides: nothing beside 1, and has a logarithm


class Schedule(NamedTuple):
    """How many tokens every layer leaves; see `coverage.left_by`.

    Attributes:
        depth: layers of the tower.
        shape: when they go: below 1 early, above 1 late.
        tokens: N of the first layer.
        layer: the one that prunes next, from 0.
        prefix: F.
        class_token: whether the first of them is a class token, whose attention says what is important; without one
            all tokens are alike.
        keep_norm: whether a token that stands for several is as long as they are on average.
    """

    depth: int
    shape: float
    tokens: int
    layer: int = 0
    prefix: int = 1
    class_token: bool = True
    keep_norm: bool = False

    def left(self, amount: float) -> int:
        """Tokens that this layer leaves."""
        return coverage.left_by(self.tokens, amount, self.shape, self.layer, self.depth)

    def next(self) -> "Schedule":
        """The same at the next layer."""
        return self._replace(layer=self.layer + 1)


class Merged(Rectangle):
    """[B, L, D], as many tokens in every sample, each with a size. The amount of coverage stands for the temperature.

    Args:
        schedule: how many tokens go where.
        sizes: [B, L], how many patches each token stands for, those in front for one; None is one each.
        places: [B, N of the first layer], which of the n tokens left every patch is part of; None where nothing merged,
            and of a part of a batch.
    """

    rule, guided = "coverage", False

    def __init__(self, schedule: Schedule, sizes: Tensor | None = None, places: Tensor | None = None):
        self.schedule, self.sizes_of_tokens, self.places = schedule, sizes, places

    @classmethod
    def of(cls, schedule: Schedule, x: Tensor, seen: Tensor | None) -> "Merged":
        """Tokens x [B, L, D] of one patch each, of which a mask [B, L] may hide some."""
        return cls(schedule, None if seen is None else seen.to(accumulator(x.dtype)).clamp(min=HIDDEN))

    @property
    def log_sizes(self) -> Tensor | None:
        return None if self.sizes_of_tokens is None else self.sizes_of_tokens.log()

    def attend(self, query, key, value, mask=None, causal=False, scores=False, dropout=0.0):
        bias = self.seen_from_outside(mask, query.dtype)
        if not scores or not self.schedule.class_token:
            return attend(query, key, value, bias, dropout=dropout)
        output, cls_attention = attend_with_class(query, key, value, bias, self.schedule.prefix, dropout)
        return output, AttentionScores(None, cls_attention)

    def seen_from_outside(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if self.sizes_of_tokens is None:
            return super().seen_from_outside(mask, dtype)
        bias = self.log_sizes if mask is None else self.log_sizes.masked_fill(~mask, float("-inf"))
        return bias[:, None, None].to(dtype)

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        keep, after, prefix = self.schedule.left(temperature), self.schedule.next(), self.schedule.prefix
        if keep >= x.shape[1] - prefix:
            return x, Merged(after, self.sizes_of_tokens, self.places), None
        attention = None if scores is None else scores.cls_attention
        x, sizes, rows, owner = shortened(x, attention, self.sizes_of_tokens, prefix, keep, self.schedule.keep_norm)
        return x, Merged(after, sizes, followed(self.places, owner)), Kept(rows, groups=owner)

    def chunk(self, x: Tensor, parts: int) -> list[Sequences]:
        sizes = [None] * parts if self.sizes_of_tokens is None else self.sizes_of_tokens.chunk(parts)
        return [Sequences(part, self.with_sizes(own)) for part, own in zip(x.chunk(parts), sizes, strict=True)]

    def take(self, x: Tensor, samples: Tensor | list[int]) -> Sequences:
        sizes = self.sizes_of_tokens
        return Sequences(x[samples], self.with_sizes(None if sizes is None else sizes[samples]))

    def to(self, device: str | torch.device) -> "Merged":
        return self.with_sizes(None if self.sizes_of_tokens is None else self.sizes_of_tokens.to(device))

    def with_sizes(self, sizes: Tensor | None) -> "Merged":
        """The same for tokens of other sizes."""
        return Merged(self.schedule, sizes)


def shortened(
    x: Tensor, cls_attention: Tensor | None, sizes: Tensor | None, prefix: int, keep: int, keep_norm: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is left of tokens once those that are not kept went into those that are.

    Args:
        x: [B, L, D].
        cls_attention: [B, N], what the class token pays to each; None where there is no such token.
        sizes: [B, L], how many patches each stands for; None is one each.
        prefix: F.
        keep: n of the others.
        keep_norm: whether each is made as long as what goes into it.

    Returns:
        The tokens [B, F + n, D], their sizes [B, F + n], the rows [B, F + n] that they were in, and which of the n each
        prunable token went into [B, N].
    """
    few = compiled.serves(x, cls_attention, sizes, most=compiled.COVERAGE)
    exact = not torch.is_autocast_enabled(x.device.type)
    found = compiled.cover(x, cls_attention, sizes, prefix, keep, keep_norm) if few and exact else None
    return found or _step_by_step(x, cls_attention, sizes, prefix, keep, keep_norm)


def _step_by_step(x, cls_attention, sizes, prefix, keep, keep_norm):
    front, x = x[:, :prefix], x[:, prefix:]
    seen = None if sizes is None else sizes[:, prefix:] >= 1
    kept, owner = _cover(x, cls_attention, seen, keep)
    if sizes is None:
        sizes = x.new_ones(x.shape[0], prefix + x.shape[1], dtype=accumulator(x.dtype))
    merged, own = coverage.absorb(x, sizes[:, prefix:], owner, keep, keep_norm)
    rows = torch.cat([torch.arange(prefix, device=x.device).expand(x.shape[0], -1), kept + prefix], dim=1)
    return torch.cat([front, merged], dim=1), torch.cat([sizes[:, :prefix], own], dim=1), rows, owner


@torch.no_grad()
def _cover(x: Tensor, cls_attention: Tensor | None, seen: Tensor | None, keep: int) -> tuple[Tensor, Tensor]:
    """The tokens that stay [B, n], and which of them each token goes into [B, N]."""
    cosine = coverage.similarity(x)
    with torch.autocast(x.device.type, enabled=False):
        attention = x.new_ones(x.shape[:2]) if cls_attention is None else cls_attention
        significance = coverage.importance(attention).to(cosine.dtype)
        significance = significance if seen is None else significance * seen
        if compiled.serves(cosine, significance, most=inf):
            found = compiled.choose(cosine, significance, keep)
            if found is not None:
                return found
        kept = coverage.choose(cosine, significance, keep)
        return kept, coverage.owners(cosine, kept)
