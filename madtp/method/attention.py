"""Attention that also returns what the importance of a token is made of (MADTP: dynamic token pruning).

Shapes: B batch, H heads, Q queries, L keys (class token first), N = L - 1 prunable tokens, E width of a head.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp.method import compiled
from madtp.method.attention_blocks import BlockwiseAttention, attend_without_gradients, whole
from madtp.method.precision import accumulator, at_least_single, exact

logger = logging.getLogger(__name__)


class AttentionScores(NamedTuple):
    """What self-attention says of every prunable token, not yet normalised.

    Attributes:
        self_attention: [B, N], sum over the prunable queries of the largest attention any head pays to the token; None
            of a rule that does without, for which attention stays one fused call.
        cls_attention: [B, N], attention of the class token, each head weighted by its share in the token's output norm.
    """

    self_attention: Tensor | None
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

    Without scores this is one fused call, PyTorch's or, where that is faster, one in C. With scores the map is made and
    forgotten block of queries by block of queries, and once more in the backward pass, so that memory stays linear in
    L. On a GPU, in half precision and without gradients, kernels of our own do it tile by tile. Only where weights are
    dropped, in the training of short texts, the map is whole. Autocast does not touch the scores: they are computed in
    the inputs' own precision.

    Args:
        query: [B, H, Q, E].
        key: [B, H, L, E].
        value: [B, H, L, E].
        mask: boolean, broadcastable to [B, H, Q, L], True where attention may go; every query needs one such key.
            Without scores also what is added to the logits, in the type of the query.
        scores: also return the scores; self-attention only, so Q = L.
        dropout: probability of dropping an attention weight; the scores use the weights before dropout.
        counted: boolean [B, L], the queries whose attention adds to `self_attention`; None counts all. The class
            token's never does.

    Returns:
        The output [B, H, Q, E], and the scores or None.
    """
    if not scores:
        return _fused(query, key, value, mask, dropout), None
    with exact(query.device.type):
        if dropout > 0:
            output, sums, cls_row = whole(query, key, value, mask, counted, dropout)  # its dropout is drawn but once
        else:
            plain = counted is None and (mask is None or mask.dtype is torch.bool)
            if plain and compiled.serves_attention(query, key, value):
                output, *found = compiled.attend(query, key, value, mask)
                return output, AttentionScores(*found)
            grad = torch.is_grad_enabled()
            kind = query.device, query.dtype, query.shape[-1], mask is not None
            attended = BlockwiseAttention.apply if grad else _inference_path(*kind)
            output, sums, cls_row = attended(query, key, value, mask, counted)
        return output, AttentionScores(sums[:, 1:], _cls_attention(cls_row[:, :, 1:], output))


def attend_with_class(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    prefix: int = 1,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Fused self-attention [B, H, L, E], and what the class token pays to every prunable token; see `class_attention`.

    Args:
        query: [B, H, L, E].
        key: [B, H, L, E].
        value: [B, H, L, E].
        bias: added to the logits, or boolean, broadcastable to [B, 1, 1, L].
        prefix: how many tokens in front are never pruned, the class token the first of them.
        dropout: probability of dropping an attention weight; what the class token pays is as before.
    """
    boolean = bias is not None and bias.dtype is torch.bool
    few = compiled.serves(query, key, value)
    if dropout == 0 and not boolean and (few or compiled.serves_plain_attention(query, key, value)):
        return compiled.attend_with_class(query, key, value, bias, prefix)
    output, _ = attend(query, key, value, bias, dropout=dropout)
    return output, class_attention(query, key, bias, prefix)


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    if dropout == 0 and compiled.serves_plain_attention(query, key, value):
        if mask is None or mask.dtype is torch.bool:
            return compiled.attend_with_class(query, key, value, None, mask=mask)[0]
        if mask.shape[1:3] == (1, 1):  # alike for all heads and queries
            return compiled.attend_with_class(query, key, value, mask)[0]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def class_attention(query: Tensor, key: Tensor, bias: Tensor | None = None, prefix: int = 1) -> Tensor:
    """What the class token pays to every prunable token, the mean over the heads: [B, N].

    Args:
        query: [B, H, L, E], the class token's first.
        key: [B, H, L, E].
        bias: added to the logits, or boolean, broadcastable to [B, 1, 1, L].
        prefix: how many tokens in front are never pruned, the class token the first of them.
    """
    with exact(query.device.type):
        if compiled.serves(query, key, bias, most=compiled.COVERAGE):
            return compiled.class_attention(query, key, bias, prefix)
        logits = at_least_single(query[:, :, :1] @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
        if bias is not None:
            logits = logits.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else logits + bias
        return logits.softmax(dim=-1)[:, :, 0, prefix:].mean(dim=1)


@cache
def _inference_path(device: torch.device, dtype: torch.dtype, width: int, masked: bool) -> Callable:
    """The kernels where they are fast, run and agree with the block-wise path on an example; else that path.

    Heads of another width, or with a mask, are another kernel, which may need more than a GPU has.
    """
    if device.type != "cuda" or dtype.itemsize > 2:  # tensor cores multiply halves only
        return attend_without_gradients
    try:
        from madtp.method.attention_kernel import attend_fused

        angles = torch.arange(2 * 3 * 80 * width, device=device).view(2, 3, 80, width)
        mask = torch.arange(80, device=device).expand(2, 1, 1, 80) < 70 if masked else None
        example = angles.sin().to(dtype), (2 * angles).cos().to(dtype), (3 * angles).sin().to(dtype), mask, None
        torch.testing.assert_close(attend_fused(*example), BlockwiseAttention.forward(*example), rtol=0.05, atol=0.05)
    except Exception as error:  # there is no telling what a missing or another compiler raises
        logger.warning("no Triton kernels, scores are made in blocks: %s", str(error).strip().partition("\n")[0])
        return attend_without_gradients
    return attend_fused


def _cls_attention(cls_row: Tensor, output: Tensor) -> Tensor:
    """Class attention [B, N], head h weighted by r_h[j] = |O_h[j]| / (sum over heads + 1e-8)."""
    norms = output[:, :, 1:].norm(dim=-1, dtype=accumulator(output.dtype))  # [B, H, N]
    return (cls_row * norms).sum(dim=1) / (norms.sum(dim=1) + 1e-8)
