"""Coverage whose tokens stay as long as what they stand for: the mean of tokens that differ is shorter than they are.

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
            lengths = mean_lengths(x[:, front:], sizes[:, front:], kept.groups, left.shape[1] - front)
            own = left[:, front:].norm(dim=-1).clamp(min=1e-8)
            left = torch.cat([left[:, :front], left[:, front:] * (lengths / own).to(left.dtype).unsqueeze(-1)], dim=1)
        return left, Lengthened(after.schedule, after.sizes_of_tokens, after.places), kept

    def with_sizes(self, sizes: Tensor | None) -> "Lengthened":
        return Lengthened(self.schedule, sizes)


def mean_lengths(x: Tensor, sizes: Tensor, groups: Tensor, keep: int) -> Tensor:
    """The mean length of what went into each of n tokens, [B, n]: tokens x [B, N, D], sizes and groups [B, N]."""
    lengths = x.norm(dim=-1).to(sizes.dtype)
    sums = [torch.zeros_like(sizes[:, :keep]).scatter_add(1, groups, part) for part in (sizes * lengths, sizes)]
    return sums[0] / sums[1]
