"""Attention that also returns what the importance of a token is made of (MADTP: dynamic token pruning).

Shapes: B batch, H heads, Q queries, L keys (class token first), N = L - 1 prunable tokens, E width of a head.
"""

from itertools import product
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 192  # queries of a sample at most whose attention map is held at a time
CPU_ENTRIES, ENTRIES = 2**20, 2**26  # of a map over several samples: what caches hold, what keeps an accelerator busy


class AttentionScores(NamedTuple):
    """What self-attention says of every prunable token, not yet normalised.

    Attributes:
        self_attention: [B, N], sum over the prunable queries of the largest attention any head pays to the token.
        cls_attention: [B, N], attention of the class token, each head weighted by its share in the token's output norm.
    """

    self_attention: Tensor
    cls_attention: Tensor


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scores: bool = False,
    dropout: float = 0.0,
    counted: Tensor | None = None,
) -> tuple[Tensor, AttentionScores | None]:
    """Scaled dot-product attention, with the scores that pruning needs when asked.

    Without scores this is one fused call. With scores and without gradients the map is made and forgotten block of
    queries by block of queries, so that memory stays linear in L. With gradients the scores are differentiable, and
    the map is whole. Autocast does not touch the scores: they are computed in the inputs' own precision.

    Args:
        query: [B, H, Q, E].
        key: [B, H, L, E].
        value: [B, H, L, E].
        mask: boolean, broadcastable to [B, H, Q, L], True where attention may go; every query needs one such key.
        scores: also return the scores; self-attention only, so Q = L.
        dropout: probability of dropping an attention weight; the scores use the weights before dropout.
        counted: [B, L], True for the queries that `self_attention` sums over; None is all but the class token.

    Returns:
        The output [B, H, Q, E], and the scores or None.
    """
    if not scores:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout), None
    with torch.autocast(query.device.type, enabled=False):
        query = query * query.shape[-1] ** -0.5
        whole = torch.is_grad_enabled() or dropout > 0
        attended = _attend_whole if whole else _attend_in_blocks
        output, self_attention, cls_row = attended(query, key, value, mask, dropout, counted)
        return output, AttentionScores(self_attention, _cls_attention(cls_row, output))


def _attention_map(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys of scaled queries, [B, H, Q, L]."""
    logits = query @ key.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(dim=-1)


def _attend_whole(query, key, value, mask, dropout: float, counted: Tensor | None):
    """The differentiable path: output, column sums [B, N] of the maximum over heads, class row [B, H, N]."""
    weights = _attention_map(query, key, mask)
    output = F.dropout(weights, dropout) @ value
    largest = weights[:, :, 1:, 1:].amax(dim=1)
    if counted is not None:
        largest = largest * counted[:, 1:, None]
    self_attention = largest.sum(dim=1, dtype=_accumulator(weights.dtype))
    return output, self_attention, weights[:, :, 0, 1:]


def _attend_in_blocks(query, key, value, mask, dropout: float, counted: Tensor | None):
    """The same without ever holding more than a block of queries of the map; `dropout` is 0 here."""
    batch, heads, length, _ = query.shape
    block = ceil(length / ceil(length / QUERY_BLOCK))  # blocks of about one size: the last is no small rest
    samples = max(1, (CPU_ENTRIES if query.device.type == "cpu" else ENTRIES) // (heads * block * length))
    mask = None if mask is None else mask.expand(batch, heads, length, length)
    output = torch.empty_like(query)
    column_sums = query.new_zeros(batch, length, dtype=_accumulator(query.dtype))
    cls_row = query.new_empty(batch, heads, length)
    for first, start in product(range(0, batch, samples), range(0, length, block)):
        some, rows = slice(first, first + samples), slice(start, start + block)
        block_mask = None if mask is None else mask[some, :, rows]
        weights = _attention_map(query[some, :, rows], key[some], block_mask)  # [samples, H, block, L]
        output[some, :, rows] = weights @ value[some]
        largest = weights.amax(dim=1)
        if counted is not None:
            largest = largest * counted[some, rows, None]
        if start == 0:
            cls_row[some] = weights[:, :, 0]
            largest = largest[:, 1:]
        column_sums[some] += largest.sum(dim=1, dtype=column_sums.dtype)
    return output, column_sums[:, 1:], cls_row[:, :, 1:]


def _cls_attention(cls_row: Tensor, output: Tensor) -> Tensor:
    """Class attention [B, N], head h weighted by r_h[j] = |O_h[j]| / (sum over heads + 1e-8)."""
    norms = output[:, :, 1:].norm(dim=-1, dtype=_accumulator(output.dtype))  # [B, H, N]
    return (cls_row * norms).sum(dim=1) / (norms.sum(dim=1) + 1e-8)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """Half-precision sums are kept in float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
