"""Attention and the sums its scores are made of, block of queries by block of queries, forward and backward.

Shapes: B batch, H heads, Q queries of a block, L tokens (class token first), E width of a head.
"""

from collections.abc import Iterator
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from madtp.method.precision import accumulator, exact

QUERY_BLOCK = 192  # queries of a sample at most whose attention map is held at a time
CPU_ENTRIES, ENTRIES = 2**20, 2**26  # of a map over several samples: what caches hold, what keeps an accelerator busy


class BlockwiseAttention(torch.autograd.Function):
    """Self-attention, the column sums [B, L] of its largest weights over the heads, the class token's row [B, H, L].

    The backward pass makes the map anew, so that nothing but the inputs is kept for it. Heads that attend equally share
    the gradient of the largest.
    """

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, counted: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, heads, length, _ = query.shape
        output = torch.empty_like(query)
        sums = query.new_zeros(batch, length, dtype=accumulator(query.dtype))
        cls_row = query.new_empty(batch, heads, length)
        for some, blocks in _blocks(query):
            keys, values = _for_products(key[some]), _for_products(value[some])
            for rows in blocks:
                weights = attention_map(query[some, :, rows], keys, _part(mask, query, some, rows))
                output[some, :, rows] = weights @ values
                sums[some] += sum_of_largest(weights, rows, None if counted is None else counted[some])
                if rows.start == 0:
                    cls_row[some] = weights[:, :, 0]
        return output, sums, cls_row

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor, grad_sums: Tensor, grad_cls_row: Tensor) -> tuple:
        query, key, value, mask, counted = ctx.saved_tensors
        grad_query, grad_key, grad_value = map(torch.empty_like, (query, key, value))
        scale = query.shape[-1] ** -0.5
        with exact(query.device.type):
            for some, blocks in _blocks(query):
                keys, values = _for_products(key[some]), _for_products(value[some])
                key_sum, value_sum = (torch.zeros_like(keys, dtype=accumulator(keys.dtype)) for _ in "kv")
                for rows in blocks:
                    weights = attention_map(query[some, :, rows], keys, _part(mask, query, some, rows))
                    outgoing = grad_output[some, :, rows]
                    value_sum += weights.transpose(-2, -1) @ outgoing
                    grad = outgoing @ values.transpose(-2, -1)  # of the weights
                    _add_to_largest(grad, weights, grad_sums[some], rows, None if counted is None else counted[some])
                    if rows.start == 0:
                        grad[:, :, 0] += grad_cls_row[some]
                    grad = torch._softmax_backward_data(grad, weights, -1, weights.dtype).mul_(scale)  # of the logits
                    grad_query[some, :, rows] = grad @ keys
                    key_sum += grad.transpose(-2, -1) @ query[some, :, rows]
                grad_key[some], grad_value[some] = key_sum, value_sum
        return grad_query, grad_key, grad_value, None, None


def attend_without_gradients(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, counted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `BlockwiseAttention`; where all fits into one block without slices, which would take as long as the rest."""
    batch, _, length, _ = query.shape
    if length <= QUERY_BLOCK and batch <= _samples(query, length):
        return whole(query, key, value, mask, counted)
    return BlockwiseAttention.forward(query, key, value, mask, counted)


def whole(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, counted: Tensor | None, dropout: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `BlockwiseAttention` from a map held whole, some of whose weights may be dropped."""
    weights = attention_map(query, key, mask)
    output = (F.dropout(weights, dropout) if dropout else weights) @ value
    return output, sum_of_largest(weights, slice(0, None), counted), weights[:, :, 0]


def attention_map(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys, [B, H, Q, L]."""
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(dim=-1)


def sum_of_largest(weights: Tensor, rows: slice, counted: Tensor | None) -> Tensor:
    """Sum over the queries of the largest weight of any head: [B, H, Q, L] -> [B, L].

    Args:
        weights: of the queries `rows`.
        rows: which they are.
        counted: [B, L], the queries that count, None for all; query 0 never does.
    """
    largest = weights.amax(dim=1)
    counts = _counts(counted, rows)
    if counts is not None:
        largest = largest * counts
    return largest[:, int(rows.start == 0) :].sum(dim=1, dtype=accumulator(weights.dtype))


def _add_to_largest(grad: Tensor, weights: Tensor, grad_sums: Tensor, rows: slice, counted: Tensor | None) -> None:
    """Adds the gradient [B, L] of `sum_of_largest` to that of the weights."""
    first = int(rows.start == 0)
    grad, weights = grad[:, :, first:], weights[:, :, first:]
    largest = weights.amax(dim=1, keepdim=True)
    chosen = torch.eq(weights, largest, out=torch.empty_like(weights))  # numbers, which multiply faster than booleans
    share = grad_sums[:, None, None, :] / chosen.sum(dim=1, keepdim=True)  # [B, 1, Q, L]
    counts = _counts(counted, rows)
    if counts is not None:
        share = share * counts[:, None, first:]
    grad.addcmul_(chosen, share.to(grad.dtype))


def _counts(counted: Tensor | None, rows: slice) -> Tensor | None:
    """Which queries of a block count, [B, Q, 1]."""
    return None if counted is None else counted[:, rows].unsqueeze(-1)


def _blocks(query: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Samples that share their blocks, and the queries of each of these blocks."""
    batch, _, length, _ = query.shape
    block = ceil(length / ceil(length / QUERY_BLOCK))  # blocks of about one size: the last is no small rest
    blocks = [slice(start, start + block) for start in range(0, length, block)]
    samples = _samples(query, block)
    for first in range(0, batch, samples):
        yield slice(first, first + samples), blocks


def _samples(query: Tensor, block: int) -> int:
    """How many samples share blocks of so many queries."""
    _, heads, length, _ = query.shape
    return max(1, (CPU_ENTRIES if query.device.type == "cpu" else ENTRIES) // (heads * block * length))


def _for_products(x: Tensor) -> Tensor:
    """Copied at once where every product of a block would copy it: on a CPU, in half precision."""
    return x.contiguous() if x.dtype.itemsize == 2 and x.device.type == "cpu" else x


def _part(mask: Tensor | None, query: Tensor, some: slice, rows: slice) -> Tensor | None:
    """The mask of a block."""
    if mask is None:
        return None
    batch, heads, length, _ = query.shape
    return mask.expand(batch, heads, length, length)[some, :, rows]
