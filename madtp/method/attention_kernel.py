"""Attention with its scores on a GPU: two Triton kernels that never write an attention map to memory.

The first is fused attention (Dao et al., 2022) that also returns the log-sum-exp of every query. From that, the second
makes the map anew, tile by tile, takes the largest weight over the heads and sums it over the queries. Each number is
summed by one program in a fixed order, so results repeat themselves.

Shapes: B batch, H heads, L tokens (class token first), E width of a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES, KEYS = 64, 64  # of a tile of the map
QUERY_GROUP = 512  # queries whose column sums one program takes


def attend_fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, counted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`BlockwiseAttention` without gradients: output, column sums [B, L], the class token's row [B, H, L].

    Args:
        query: [B, H, L, E], float32 or half precision.
        key: [B, H, L, E].
        value: [B, H, L, E].
        mask: boolean, broadcastable to [B, H, L, L], True where attention may go.
        counted: boolean [B, L], the queries that count; None for all. Query 0 never does.
    """
    batch, heads, length, width = query.shape
    scale = width**-0.5
    sizes = {"WIDTH": width, "WIDE": max(16, triton.next_power_of_2(width)), "QUERIES": QUERIES, "KEYS": KEYS}
    sizes["MASKED"] = mask is not None
    allowed = query if mask is None else mask.expand(batch, heads, length, length).view(torch.uint8)
    output = torch.empty_like(query)
    log_sum = query.new_empty(batch, heads, length, dtype=torch.float32)
    counts = torch.ones(batch, length, dtype=torch.bool, device=query.device)
    if counted is not None:
        counts.copy_(counted)
    counts[:, 0] = False
    groups = triton.cdiv(length, QUERY_GROUP)
    sums = query.new_empty(groups, batch, length, dtype=torch.float32)
    with torch.cuda.device_of(query):  # Triton launches on the current GPU, whichever the tensors are on
        _attend[(triton.cdiv(length, QUERIES), heads, batch)](
            query, key, value, allowed, output, log_sum, *query.stride(), *key.stride(), *value.stride(),
            *allowed.stride(), *output.stride(), heads, length, scale, **sizes,
        )  # fmt: skip
        _sum_largest[(triton.cdiv(length, KEYS), groups, batch)](
            query, key, allowed, log_sum, counts.view(torch.uint8), sums, *query.stride(), *key.stride(),
            *allowed.stride(), heads, length, scale, GROUP=QUERY_GROUP, **sizes,
        )  # fmt: skip
    logits = (query[:, :, :1] * scale) @ key.transpose(-2, -1)  # [B, H, 1, L]
    if mask is not None:
        logits = logits.masked_fill(~mask.expand(batch, heads, length, length)[:, :, :1], float("-inf"))
    return output, sums.sum(dim=0), logits.softmax(dim=-1)[:, :, 0]


@triton.jit
def _tile(pointer, rows, columns, row_stride, column_stride, row_end, column_end):
    """Loads a tile of a matrix, 0 beyond its ends."""
    inside = (rows[:, None] < row_end) & (columns[None, :] < column_end)
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=inside, other=0)


@triton.jit
def _logits(
    queries, keys, rows, columns, allowed, row_stride, column_stride, length, scale, MASKED: tl.constexpr
):  # fmt: skip
    """Logits of a tile, -inf where attention may not go."""
    logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    logits = tl.where(columns[None, :] < length, logits, float("-inf"))
    if MASKED:
        goes = _tile(allowed, rows, columns, row_stride, column_stride, length, length) != 0
        logits = tl.where(goes, logits, float("-inf"))
    return logits


@triton.jit(do_not_specialize=["length"])  # lengths are many, and no address depends on them
def _attend(
    query, key, value, allowed, output, log_sum,
    query_b, query_h, query_l, query_e, key_b, key_h, key_l, key_e, value_b, value_h, value_l, value_e,
    allowed_b, allowed_h, allowed_q, allowed_k, output_b, output_h, output_l, output_e, heads, length, scale,
    WIDTH: tl.constexpr, WIDE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of a block of queries of one head."""
    head, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, features = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, WIDE)
    query += sample * query_b + head * query_h
    key += sample * key_b + head * key_h
    value += sample * value_b + head * value_h
    allowed += sample * allowed_b + head * allowed_h
    queries = _tile(query, rows, features, query_l, query_e, length, WIDTH)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    summed = tl.zeros([QUERIES, WIDE], tl.float32)
    for start in range(0, length, KEYS):
        columns = start + tl.arange(0, KEYS)
        keys = _tile(key, columns, features, key_l, key_e, length, WIDTH)
        logits = _logits(queries, keys, rows, columns, allowed, allowed_q, allowed_k, length, scale, MASKED)
        highest = tl.maximum(largest, tl.max(logits, axis=1))
        base = tl.where(highest == float("-inf"), 0.0, highest)  # a tile that is closed to a query so far
        powers = tl.exp(logits - base[:, None])
        fading = tl.exp(largest - base)
        total = total * fading + tl.sum(powers, axis=1)
        values = _tile(value, columns, features, value_l, value_e, length, WIDTH)
        summed = summed * fading[:, None] + tl.dot(powers.to(values.dtype), values, input_precision="ieee")
        largest = highest
    inside = rows < length
    total = tl.where(inside, total, 1.0)
    places = output + sample * output_b + head * output_h + rows[:, None] * output_l + features[None, :] * output_e
    tl.store(places, summed / total[:, None], mask=inside[:, None] & (features[None, :] < WIDTH))
    tl.store(log_sum + (sample * heads + head) * length + rows, largest + tl.log(total), mask=inside)


@triton.jit(do_not_specialize=["length"])
def _sum_largest(
    query, key, allowed, log_sum, counts, sums,
    query_b, query_h, query_l, query_e, key_b, key_h, key_l, key_e, allowed_b, allowed_h, allowed_q, allowed_k,
    heads, length, scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Sums over a group of queries, for a block of keys, of the largest weight of any head."""
    group, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    columns, features = tl.program_id(0) * KEYS + tl.arange(0, KEYS), tl.arange(0, WIDE)
    column_sums = tl.zeros([KEYS], tl.float32)
    for start in range(group * GROUP, min((group + 1) * GROUP, length), QUERIES):
        rows = start + tl.arange(0, QUERIES)
        inside = rows < length
        largest = tl.zeros([QUERIES, KEYS], tl.float32)
        for head in range(heads):
            queries = _tile(query + sample * query_b + head * query_h, rows, features, query_l, query_e, length, WIDTH)
            keys = _tile(key + sample * key_b + head * key_h, columns, features, key_l, key_e, length, WIDTH)
            logits = _logits(
                queries, keys, rows, columns, allowed + sample * allowed_b + head * allowed_h, allowed_q, allowed_k,
                length, scale, MASKED,
            )  # fmt: skip
            total = tl.load(log_sum + (sample * heads + head) * length + rows, mask=inside, other=0.0)
            largest = tl.maximum(largest, tl.exp(logits - total[:, None]))
        count = tl.load(counts + sample * length + rows, mask=inside, other=0)
        column_sums += tl.sum(tl.where(count[:, None] != 0, largest, 0.0), axis=0)
    batch = tl.num_programs(2)
    tl.store(sums + (group * batch + sample) * length + columns, column_sums, mask=columns < length)
