"""Rows of every sample, read and added up as whole rows of memory.

`Tensor.gather` and `scatter_add` would go number by number, forward and backward, many times as slowly.

Shapes: B batch, L rows of width D, k rows taken, n sums.
"""

import torch
from torch import Tensor

from madtp.method.transforms import is_transformed


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Some rows of every sample, which may come twice: [B, L, D] and their places [B, k] to [B, k, D]."""
    return x.flatten(0, 1).index_select(0, _flat(rows, x.shape[1])).view(*rows.shape, x.shape[2])


def add_up(x: Tensor, owner: Tensor, sums: int) -> Tensor:
    """Sums of the rows that have one owner: [B, L, D] and owners [B, L], each below n, to [B, n, D]."""
    batch, _, width = x.shape
    added = _Added.apply if torch.is_grad_enabled() and not is_transformed() else _Added.forward
    return added(x.flatten(0, 1), _flat(owner, sums), batch * sums).view(batch, sums, width)


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


class _Added(torch.autograd.Function):
    """Rows [R, D] added up where they go, [R], of so many places; PyTorch's own would keep the rows for their shape."""

    @staticmethod
    def forward(rows: Tensor, places: Tensor, sums: int) -> Tensor:
        return rows.new_zeros(sums, rows.shape[1]).index_add_(0, places, rows)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None
