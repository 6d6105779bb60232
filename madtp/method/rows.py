"""Rows of every sample, read and added up as whole rows of memory.

`Tensor.gather` and `scatter_add` would go number by number, forward and backward, many times as slowly.

Shapes: B batch, L rows of width D, k rows taken, n sums.
"""

import torch
from torch import Tensor


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Some rows of every sample, which may come twice: [B, L, D] and their places [B, k] to [B, k, D]."""
    return x.flatten(0, 1).index_select(0, _flat(rows, x.shape[1])).view(*rows.shape, x.shape[2])


def add_up(x: Tensor, owner: Tensor, sums: int) -> Tensor:
    """Sums of the rows that have one owner: [B, L, D] and owners [B, L], each below n, to [B, n, D]."""
    batch, _, width = x.shape
    return x.new_zeros(batch * sums, width).index_add(0, _flat(owner, sums), x.flatten(0, 1)).view(batch, sums, width)


def followed(places: Tensor | None, owner: Tensor) -> Tensor:
    """Where everything of the beginning is once rows have merged again: [B, N].

    Args:
        places: [B, N], which row each was part of before; None where each was its own.
        owner: [B, L], the row that each of the L rows went into.
    """
    return owner if places is None else owner.gather(1, places)


def _flat(places: Tensor, length: int) -> Tensor:
    """Places [B, k] in samples of a length, as places in all samples one after the other: [B * k]."""
    starts = length * torch.arange(places.shape[0], device=places.device)
    return (places + starts.unsqueeze(1)).flatten()
