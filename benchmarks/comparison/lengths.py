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
            sizes = x.new_ones(x.shape[:2]) if self.sizes_of_tokens is None else self.sizes_of_tokens
            left = as_long(left, after.sizes_of_tokens, x, sizes, kept.groups, self.schedule.prefix)
        return left, Lengthened(after.schedule, after.sizes_of_tokens, after.places), kept

    def with_sizes(self, sizes: Tensor | None) -> "Lengthened":
        return Lengthened(self.schedule, sizes)


def as_long(left: Tensor, total: Tensor, x: Tensor, sizes: Tensor, groups: Tensor, front: int) -> Tensor:
    """The tokens that are left, each of those that may stand for several as long as they are on average.

    Args:
        left: [B, F + n, D].
        total: [B, F + n], their sizes.
        x: [B, L, D], what they were made of.
        sizes: [B, L], of these.
        groups: [B, N], which of the n each of the N went into.
        front: F.

    Returns:
        [B, F + n, D].
    """
    merged, total = left[:, front:], total[:, front:]
    lengths = sizes * x.norm(dim=-1).to(total.dtype)
    sums = torch.zeros_like(total).scatter_add(1, groups, lengths[:, front:])
    own = merged.norm(dim=-1).clamp(min=1e-8)
    return torch.cat([left[:, :front], merged * (sums / total / own).to(merged.dtype).unsqueeze(-1)], dim=1)
