"""The tokens of a batch packed in a single row, one sample after the other: nothing is computed for padding.

Norms, projections and MLPs see one matrix; attention takes samples of one length together.

Shapes: B samples, T tokens of all of them, L tokens of the longest with the class token in front, D width, H heads, E =
D / H, K learnable tokens. Packed tensors have 1 and T where rectangles have B and L.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from itertools import accumulate, chain, pairwise

import numpy as np
import torch
from torch import Tensor

from madtp.method.attention import AttentionScores, attend
from madtp.method.layout import Masked, Sequences, attention_mask
from madtp.method.precision import exact
from madtp.method.pruning import assess, merge, merge_weights, own_tokens


class Packed(Masked):
    """[1, T, D], one sample's own tokens after the other's. Prunes by the rule `sample`, without gradients.

    Args:
        counts: tokens of each sample, class token included.
        device: of the tokens.
        together: how many sequences belong to one sample; see `Masked`.
        readers: how many other sequences attend to each sample; equally many unless given.
    """

    ragged = True

    def __init__(self, counts: list[int], device: torch.device, together: int = 1, readers: list[int] | None = None):
        self.counts, self.starts, self.device = counts, [0, *accumulate(counts)], device
        self.together, self.readers = together, readers

    @classmethod
    def of(cls, x: Tensor, own: Tensor | None, together: int = 1) -> Sequences:
        """Packs [B, L, D], of which `own` [B, L] tells the tokens."""
        counts = [x.shape[1]] * len(x) if own is None else own.sum(dim=1).tolist()
        packed = x.flatten(0, 1) if min(counts) == x.shape[1] else x[own]
        return Sequences(packed.unsqueeze(0), cls(counts, x.device, together))

    @cached_property
    def offsets(self) -> Tensor:
        """[B], where each sample starts."""
        return torch.tensor(self.starts[:-1], device=self.device)

    @cached_property
    def equal(self) -> bool:
        """Whether all samples are equally long."""
        return len(set(self.counts)) == 1

    @cached_property
    def inside(self) -> Tensor:
        """[B, L], True where there is a token."""
        return own_tokens(torch.tensor(self.counts, device=self.device), max(self.counts))

    def lengths(self, x: Tensor) -> np.ndarray:
        return np.array(self.counts)

    def segment_lengths(self, x: Tensor) -> list[int]:
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
        if len(x) == own.numel():
            return x.reshape(*own.shape, *x.shape[1:])
        return x.new_zeros(*own.shape, *x.shape[1:]).masked_scatter_(own.view(*own.shape, *[1] * (x.ndim - 1)), x)

    def attend(self, query, key, value, mask=None, causal=False, scores=False, dropout=0.0):
        if query.is_cuda and not self.equal:
            return self._attend_padded(query, key, value, mask, causal, scores)
        if self.equal:
            parts = [x[0].unflatten(1, (len(self.counts), -1)).transpose(0, 1) for x in (query, key, value)]
            allowed = attention_mask(mask, causal, self.counts[0], parts[1])
            output, found = attend(*parts, allowed, scores)
            return output.transpose(0, 1).flatten(1, 2).unsqueeze(0), found
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
        if len(self.counts) == 1:
            return attend(query, key, value)[0]
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
        with exact(x.device.type):
            own = self.inside[:, 1:]
            alignment = self.rectangle(alignment[0], own)  # [B, N, K]
            significance, passing = assess(scores, alignment, temperature, protected, own)
            kept, dropped = self._select(significance, passing, min_keep, own)
            if kept is None:
                return x, self, None
            weights = merge_weights(significance * dropped)
            merged = self._merged(x, weights, own)
            after = Packed(kept.lengths.tolist(), x.device, self.together)
            shortened = x.index_select(1, (kept.rows + self.offsets.unsqueeze(1))[kept.own])
            last = after.offsets + kept.lengths - 1
            shortened[0, last[kept.merges]] = merged[kept.merges]
            return shortened, after, kept

    def _merged(self, x: Tensor, weights: Tensor, own: Tensor) -> Tensor:
        """Each sample's merged token, [B, D], by weights [B, N]: on accelerators in one call, padding and all."""
        if x.is_cuda:
            return merge(self.rectangle(self.prunable(x)[0], own), weights)[:, 0]
        parts = (x[:, start + 1 : end] for start, end in pairwise(self.starts))
        return torch.cat([merge(part, row[None, : part.shape[1]])[0] for part, row in zip(parts, weights, strict=True)])

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
        """The samples of several batches in one; a batch of one sample may be a rectangle."""
        parts = [part if isinstance(part.layout, Packed) else Packed.of(part.tokens, None) for part in parts]
        counts = list(chain.from_iterable(layout.counts for _, layout in parts))
        return Sequences(torch.cat([x for x, _ in parts], dim=1), Packed(counts, parts[0].tokens.device))

    def _by_length(self) -> list[tuple[list[int], int]]:
        """Samples that are equally long attend together: their numbers, and their length."""
        groups = defaultdict(list)
        for sample, count in enumerate(self.counts):
            groups[count].append(sample)
        return [(samples, length) for length, samples in groups.items()]

    def _rows(self, samples: list[int], length: int) -> Tensor | slice:
        """Where the tokens of some samples stand, one sample after the other."""
        if len(samples) == 1:
            return slice(self.starts[samples[0]], self.starts[samples[0]] + length)
        starts = torch.tensor([self.starts[sample] for sample in samples], device=self.device)
        return (starts.unsqueeze(1) + torch.arange(length, device=self.device)).flatten()
