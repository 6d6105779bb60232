"""Merged tokens that stay as long as what they stand for: the mean of tokens that differ is shorter than they are.

    x_i <- x_i / |x_i| (sum_j s_j |x_j|) / (sum_j s_j)

over all tokens j of sizes s_j that went into i. Equal tokens that are merged come out as they were.

Shapes: B samples, L tokens of which F stay in front, N = L - F, D width, n tokens kept.
"""

import torch
from torch import Tensor

from madtp.method.merged import Merged


class Lengthened(Merged):
    """As `Merged`, with the lengths kept."""

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        left, after, kept = super().prune(x, scores, alignment, temperature, min_keep, protected)
        if kept is not None:
            front, sizes = self.schedule.prefix, self.sizes_of_tokens
            sizes = x.new_ones(x.shape[:2]) if sizes is None else sizes
            merged = as_long(left[:, front:], x[:, front:], sizes[:, front:], kept.groups)
            left = torch.cat([left[:, :front], merged], dim=1)
        return left, Lengthened(after.schedule, after.sizes_of_tokens, after.places), kept

    def with_sizes(self, sizes: Tensor | None) -> "Lengthened":
        return Lengthened(self.schedule, sizes)


def as_long(merged: Tensor, x: Tensor, sizes: Tensor, groups: Tensor) -> Tensor:
    """Tokens [B, n, D] as long as the mean of what went into each: x [B, N, D], of these sizes, by group [B, N]."""
    parts = (sizes * x.norm(dim=-1).to(sizes.dtype), sizes)
    total, size = (torch.zeros_like(sizes[:, : merged.shape[1]]).scatter_add(1, groups, part) for part in parts)
    own = merged.norm(dim=-1).clamp(min=1e-8)
    return merged * (total / size / own).to(merged.dtype).unsqueeze(-1)
