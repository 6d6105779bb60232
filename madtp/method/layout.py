"""How the tokens of a batch lie in memory: as a rectangle, or as one with a mask; `packed` has a third way.

A layer need not know: it asks the layout of its tokens to attend and to prune.

Shapes: B samples, L tokens of the longest with the class token in front, N = L - 1, D width, H heads, E = D / H, K
learnable tokens.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from madtp.method import compiled
from madtp.method.attention import AttentionScores, attend
from madtp.method.precision import exact
from madtp.method.pruning import Kept, assess, merge, merge_weights, pass_alike, prune_tokens, select_own
from madtp.method.rows import take


class Sequences(NamedTuple):
    """The tokens of a batch, and how they lie."""

    tokens: Tensor
    layout: "Rectangle"

    @classmethod
    def of(cls, tokens: "Tensor | Sequences") -> "Sequences":
        """Plain tokens are a rectangle."""
        return tokens if isinstance(tokens, cls) else cls(tokens, RECTANGLE)

    @property
    def first(self) -> Tensor:
        """The class tokens, [B, D]."""
        return self.layout.first(self.tokens)

    def chunk(self, parts: int) -> list["Sequences"]:
        """The batch in equal parts, one after the other."""
        return self.layout.chunk(self.tokens, parts)

    def take(self, samples: Tensor | list[int]) -> "Sequences":
        """Some samples, by number."""
        return self.layout.take(self.tokens, samples)

    def to(self, device: str | torch.device) -> "Sequences":
        """The same on another device."""
        return Sequences(self.tokens.to(device), self.layout.to(device))


class Rectangle:
    """[B, L, D], every token a sample's own. Prunes by the rule `batch`.

    Attributes:
        own: [B, L], True where there is a token; None is everywhere.
        log_sizes: [B, L], logarithm of how many patches a token stands for; None where that is not counted.
        places: [B, N of the first layer], which of the tokens left every patch is part of, where that is known.
        rule: whose cost a layer has.
        guided: whether pruning needs the alignment with the learnable tokens.
        ragged: whether every sample has a length of its own, and padding was left out.
    """

    own: Tensor | None = None
    log_sizes: Tensor | None = None
    places: Tensor | None = None
    rule, guided, ragged = "madtp", True, False

    def lengths(self, x: Tensor) -> int | np.ndarray:
        """Tokens of each sample, class token included; one number where all have the same."""
        return x.shape[1]

    def first(self, x: Tensor) -> Tensor:
        """The class tokens, [B, D]."""
        return x[:, 0]

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        """One token of every sample, [B, D], from their places [B]."""
        return x[torch.arange(len(x), device=x.device), places]

    def prunable(self, x: Tensor) -> Tensor:
        """All tokens but the class tokens: [B, N, D]."""
        return x[:, 1:]

    def in_company(self, values: Tensor) -> int | Tensor:
        """Of a number for each sample, [B], what counts: here the batch's largest."""
        return int(values.max())

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        scores: bool = False,
        dropout: float = 0.0,
    ) -> tuple[Tensor, AttentionScores | None]:
        """Self-attention; see `madtp.method.attention.attend`.

        Args:
            query: [B, H, Q, E].
            key: [B, H, L, E]; the last Q of its tokens are the queries'.
            value: [B, H, L, E].
            mask: boolean [B, L], False where a token is padding.
            causal: hide the future.
            scores: also return the scores, [B, N] each.
            dropout: probability of dropping an attention weight.
        """
        allowed = attention_mask(both(mask, self.own), causal, query.shape[2], key)
        return attend(query, key, value, allowed, scores, dropout, self.own)

    def seen_from_outside(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """What to tell attention from another sequence of these tokens: [B, 1, 1, L], or None where it sees all alike.

        Args:
            mask: boolean [B, L], False where it may not go.
            dtype: of the queries, for layouts that answer with something to add to the logits.
        """
        return attention_mask(both(mask, self.own), False, 1, None)

    def prune(
        self,
        x: Tensor,
        scores: AttentionScores | None,
        alignment: Tensor | None,
        temperature: float,
        min_keep: int | Tensor = 1,
        protected: Tensor | None = None,
    ) -> tuple[Tensor, "Rectangle", Kept | None]:
        """The shortened tokens and how they lie; see `madtp.method.pruning.prune_tokens`."""
        given = (x, scores, alignment, temperature, min_keep, protected)
        found = compiled.prune(x, *scores, *given[2:]) if temperature > 0 and compiled.serves(x) else None
        if found is None:
            x, kept = prune_tokens(*given)
            return x, self, kept
        x, rows = found
        return x, self, None if rows is None else Kept(rows)

    def segment_lengths(self, x: Tensor) -> list[int]:
        """Tokens of each sequence, as they lie in memory."""
        return [x.shape[1]] * len(x)

    def chunk(self, x: Tensor, parts: int) -> list["Sequences"]:
        """The batch in equal parts, one after the other."""
        return [Sequences(part, self) for part in x.chunk(parts)]

    def take(self, x: Tensor, samples: Tensor | list[int]) -> "Sequences":
        """Some samples, by number."""
        return Sequences(x[samples], self)

    def to(self, device: str | torch.device) -> "Rectangle":
        """The same for tokens on another device."""
        return self


class Alone(Rectangle):
    """[B, L, D], the sequences of one sample without padding. Both rules then choose the same tokens of it."""

    ragged = True

    def lengths(self, x: Tensor) -> np.ndarray:
        return np.full(len(x), x.shape[1])


class Masked(Rectangle):
    """[B, L, D], each sample's own tokens to the left. Prunes by the rule `sample`, with exact gradients.

    Args:
        own: [B, L], True where there is a token.
        together: how many sequences belong to one sample and keep equally many tokens; they are B / together apart.
    """

    def __init__(self, own: Tensor, together: int = 1):
        self.own, self.together = own, together

    def lengths(self, x: Tensor) -> np.ndarray:
        return self.own.sum(dim=1).cpu().numpy()

    def in_company(self, values: Tensor) -> Tensor:
        return values

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        if temperature <= 0:
            return x, self, None
        with exact(x.device.type):
            own = self.own[:, 1:]
            significance, passing = assess(scores, alignment, temperature, protected, own)
            kept, dropped = self._select(significance, passing, min_keep, own)
            if kept is None:
                return x, self, None
            merged = merge(x[:, 1:], merge_weights(significance * dropped))  # [B, 1, D]
            shortened = take(x, kept.rows)
            last = torch.arange(kept.rows.shape[1], device=x.device) == kept.lengths.unsqueeze(1) - 1
            is_merged = (last & kept.merges.unsqueeze(1)).unsqueeze(-1)
            return torch.where(is_merged, merged, shortened), Masked(kept.own, self.together), kept

    def _select(self, significance, passing, min_keep, own):
        if self.together > 1:
            passing = pass_alike(significance, passing, self.together, own)
        return select_own(significance, passing, min_keep, own)

    def chunk(self, x: Tensor, parts: int) -> list["Sequences"]:
        return [Sequences(*part) for part in zip(x.chunk(parts), map(Masked, self.own.chunk(parts)), strict=True)]

    def take(self, x: Tensor, samples: Tensor | list[int]) -> "Sequences":
        return Sequences(x[samples], Masked(self.own[samples]))

    def to(self, device: str | torch.device) -> "Masked":
        return Masked(self.own.to(device), self.together)


RECTANGLE, ALONE = Rectangle(), Alone()


def attention_mask(mask: Tensor | None, causal: bool, queries: int, key: Tensor) -> Tensor | None:
    """Boolean mask for `attend`: [B, 1, 1, L] from padding [B, L], or [..., Q, L] where the future is hidden."""
    padding = None if mask is None else mask[:, None, None, :]
    if not causal or queries == 1:
        return padding
    total = key.shape[2]
    past = torch.ones(queries, total, dtype=torch.bool, device=key.device).tril(total - queries)
    return past if padding is None else padding & past


def both(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Where both masks are True; None is everywhere."""
    if mask is None or other is None:
        return other if mask is None else mask
    return mask & other
