"""How the tokens of a batch lie in memory, and by which rule a layer keeps them.

The released rule, `batch`, keeps in every sample as many tokens as the neediest one needs, so that a batch stays a
rectangle: cost and answer of a sample depend on its company. Under `sample` each keeps what passes its own threshold.
Its sequences then differ in length. For training they stand in a rectangle with a mask; for inference they are packed,
one after the other in a single row, so that norms, projections and MLPs compute nothing for padding.

A layer sees none of this: it asks the layout of its tokens to attend and to prune.

Shapes: B samples, L tokens of the longest with the class token in front, N = L - 1, T tokens of all samples packed, D
width, H heads, E = D / H, K learnable tokens. Packed tensors have 1 and T in place of B and L. G sequences of queries
may attend to one of the keys.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from madtp.attention import AttentionScores, attend
from madtp.pruning import (
    Kept,
    assess,
    merge,
    merge_weights,
    own_tokens,
    pass_alike,
    prune_tokens,
    select_own,
)


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
    """[B, L, D], every token a sample's own. Prunes by the rule `batch`."""

    own: Tensor | None = None

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
        """Self-attention; see `madtp.attention.attend`.

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

    def prune(
        self,
        x: Tensor,
        scores: AttentionScores | None,
        alignment: Tensor | None,
        temperature: float,
        min_keep: int | Tensor = 1,
        protected: Tensor | None = None,
    ) -> tuple[Tensor, "Rectangle", Kept | None]:
        """The shortened tokens and how they lie; see `madtp.pruning.prune_tokens`."""
        x, kept = prune_tokens(x, scores, alignment, temperature, min_keep, protected)
        return x, self, kept

    def sizes(self, x: Tensor) -> list[int]:
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
        with torch.autocast(x.device.type, enabled=False):
            own = self.own[:, 1:]
            significance, passing = assess(scores, alignment, temperature, protected, own)
            kept, dropped = self._select(significance, passing, min_keep, own)
            if kept is None:
                return x, self, None
            merged = merge(x[:, 1:], merge_weights(significance, dropped))  # [B, 1, D]
            shortened = x.gather(1, kept.rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
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
        return Masked(self.own.to(device))


class Packed(Masked):
    """[1, T, D], one sample's own tokens after the other's. Prunes by the rule `sample`, without gradients.

    Args:
        counts: tokens of each sample, class token included.
        device: of the tokens.
        together: how many sequences belong to one sample; see `Masked`.
        readers: how many other sequences attend to each sample; equally many unless given.
    """

    def __init__(self, counts: list[int], device: torch.device, together: int = 1, readers: list[int] | None = None):
        self.counts, self.starts, self.device = counts, [0, *accumulate(counts)], device
        self.together, self.readers = together, readers

    @classmethod
    def of(cls, x: Tensor, own: Tensor | None, together: int = 1) -> Sequences:
        """Packs [B, L, D], of which `own` [B, L] tells the tokens."""
        counts = [x.shape[1]] * len(x) if own is None else own.sum(dim=1).tolist()
        packed = x.flatten(0, 1) if own is None else x[own]
        return Sequences(packed.unsqueeze(0), cls(counts, x.device, together))

    @property
    def offsets(self) -> Tensor:
        """[B], where each sample starts."""
        return torch.tensor(self.starts[:-1], device=self.device)

    @property
    def equal(self) -> bool:
        """Whether all samples are equally long."""
        return len(set(self.counts)) == 1

    @property
    def inside(self) -> Tensor:
        """[B, L], True where there is a token."""
        return own_tokens(torch.tensor(self.counts, device=self.device), max(self.counts))

    def lengths(self, x: Tensor) -> np.ndarray:
        return np.array(self.counts)

    def sizes(self, x: Tensor) -> list[int]:
        return self.counts

    def first(self, x: Tensor) -> Tensor:
        return x[0, self.offsets]

    def at(self, x: Tensor, places: Tensor) -> Tensor:
        return x[0, self.offsets + places]

    def prunable(self, x: Tensor) -> Tensor:
        if self.equal:
            return x.view(len(self.counts), -1, x.shape[2])[:, 1:].reshape(1, -1, x.shape[2])
        rest = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        rest[self.offsets] = False
        return x[:, rest]

    def rectangle(self, x: Tensor, own: Tensor) -> Tensor:
        """Puts per-token values [T', ...] into a rectangle [B, L', ...] where `own` is True, zeros beside them."""
        return x.new_zeros(*own.shape, *x.shape[1:]).masked_scatter_(own.view(*own.shape, *[1] * (x.ndim - 1)), x)

    def attend(self, query, key, value, mask=None, causal=False, scores=False, dropout=0.0):
        if query.is_cuda and not self.equal:
            return self._attend_padded(query, key, value, mask, causal, scores)
        output, found = torch.empty_like(query), None
        for samples, length in self._by_length():
            rows = self._rows(samples, length)
            parts = [x[0][:, rows].unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key, value)]
            allowed = attention_mask(None if mask is None else mask[samples, :length], causal, length, parts[1])
            attended, own_scores = attend(*parts, allowed, scores)
            output[0][:, rows] = attended.transpose(0, 1).flatten(1, 2)
            if scores:
                shape = len(self.counts), max(self.counts) - 1
                found = found or AttentionScores(*(part.new_zeros(shape) for part in own_scores))
                for whole, part in zip(found, own_scores, strict=True):
                    whole[samples, : length - 1] = part
        return output, found

    def _attend_padded(self, query, key, value, mask, causal, scores):
        """The same in one call with a mask, for accelerators, where many small calls cost more than padding."""
        inside = self.inside
        padded = [self._padded(x) for x in (query, key, value)]
        attended, found = Masked(inside).attend(*padded, mask, causal, scores)
        return self._unpadded(attended), found

    def across(self, query: Tensor, key: Tensor, value: Tensor, sizes: list[int]) -> Tensor:
        """Attention of other sequences to the samples: [1, H, Tq, E].

        Args:
            query: [1, H, Tq, E], the tokens of the sequences one after the other, those that read one sample together.
            key: [1, H, T, E].
            value: [1, H, T, E].
            sizes: tokens of each sequence.
        """
        readers = self.readers or [len(sizes) // len(self.counts)] * len(self.counts)
        ends = [0, *accumulate(sizes)]
        shares = [ends[last] - ends[first] for first, last in pairwise([0, *accumulate(readers)])]
        if query.is_cuda:
            readers = Packed(shares, self.device)
            allowed = self.inside[:, None, None, :]
            attended, _ = attend(readers._padded(query), self._padded(key), self._padded(value), allowed)
            return readers._unpadded(attended)
        parts = (query.split(shares, dim=2), key.split(self.counts, dim=2), value.split(self.counts, dim=2))
        return torch.cat([attend(*part)[0] for part in zip(*parts, strict=True)], dim=2)

    def _padded(self, x: Tensor) -> Tensor:
        return self.rectangle(x[0].transpose(0, 1), self.inside).transpose(1, 2)  # [B, H, L, E]

    def _unpadded(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)[self.inside].transpose(0, 1).unsqueeze(0)  # [1, H, T, E]

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        if temperature <= 0:
            return x, self, None
        with torch.autocast(x.device.type, enabled=False):
            own = self.inside[:, 1:]
            alignment = self.rectangle(alignment[0], own)  # [B, N, K]
            significance, passing = assess(scores, alignment, temperature, protected, own)
            kept, dropped = self._select(significance, passing, min_keep, own)
            if kept is None:
                return x, self, None
            weights = merge_weights(significance, dropped)
            merged = [
                merge(x[:, start + 1 : end], weights[sample : sample + 1, : end - start - 1])[0, 0]
                for sample, (start, end) in enumerate(pairwise(self.starts))
            ]
            after = Packed(kept.lengths.tolist(), x.device, self.together)
            shortened = x[:, (kept.rows + self.offsets.unsqueeze(1))[kept.own]]
            last = after.offsets + kept.lengths - 1
            shortened[0, last[kept.merges]] = torch.stack(merged)[kept.merges]
            return shortened, after, kept

    def chunk(self, x: Tensor, parts: int) -> list["Sequences"]:
        size = len(self.counts) // parts
        starts = self.starts[::size]
        return [
            Sequences(x[:, start:end], Packed(self.counts[part * size : (part + 1) * size], self.device))
            for part, (start, end) in enumerate(pairwise(starts))
        ]

    def take(self, x: Tensor, samples: Tensor | list[int]) -> "Sequences":
        parts, samples = x.split(self.counts, dim=1), list(samples)
        taken = torch.cat([parts[sample] for sample in samples], dim=1)
        return Sequences(taken, Packed([self.counts[sample] for sample in samples], self.device))

    def to(self, device: str | torch.device) -> "Packed":
        return Packed(self.counts, torch.device(device), self.together, self.readers)

    @staticmethod
    def join(parts: Iterable["Sequences"]) -> "Sequences":
        """The samples of several batches in one."""
        parts = list(parts)
        counts = list(chain.from_iterable(layout.counts for _, layout in parts))
        return Sequences(torch.cat([x for x, _ in parts], dim=1), Packed(counts, parts[0].tokens.device))

    def _by_length(self) -> list[tuple[list[int] | slice, int]]:
        """Samples that are equally long attend together: their numbers, and their length."""
        if self.equal:
            return [(slice(None), self.counts[0])]
        groups = defaultdict(list)
        for sample, count in enumerate(self.counts):
            groups[count].append(sample)
        return [(samples, length) for length, samples in groups.items()]

    def _rows(self, samples: list[int] | slice, length: int) -> Tensor | slice:
        """Where the tokens of some samples stand, one sample after the other."""
        if isinstance(samples, slice):
            return samples
        if len(samples) == 1:
            return slice(self.starts[samples[0]], self.starts[samples[0]] + length)
        starts = torch.tensor([self.starts[sample] for sample in samples], device=self.device)
        return (starts.unsqueeze(1) + torch.arange(length, device=self.device)).flatten()


RECTANGLE = Rectangle()


def keep_batch(x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
    """The rule `batch`: x [B, L, D] as it is, padding of texts included."""
    return Sequences(x, RECTANGLE)


def keep_sample(x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
    """The rule `sample`: x [B, L, D] with a mask where gradients or aligned features are wanted, packed otherwise.

    Args:
        x: class token first.
        own: [B, L], True where there is a token, on the left of each row; None is everywhere.
        align: whether the aligned feature of the similarity loss is wanted.
        together: how many sequences, B / together apart, belong to one sample and keep equally many tokens.
    """
    if align or torch.is_grad_enabled():
        return Sequences(x, Masked(torch.ones_like(x[..., 0], dtype=torch.bool) if own is None else own, together))
    return Packed.of(x, own, together)


Keep = Callable[..., Sequences]
KEEP: dict[str, Keep] = {"batch": keep_batch, "sample": keep_sample}


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
