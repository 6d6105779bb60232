"""Dynamic token pruning (DTP), from the importance of a token to the shortened sequence.

Shapes: B batch, N prunable tokens, L = N + 1 with the class token in front, D width, K learnable tokens, k tokens kept.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp.attention import AttentionScores


class Kept(NamedTuple):
    """Which tokens a layer kept.

    Attributes:
        indices: [B, k], ascending, into the N prunable tokens.
        representative: [B, 1], the most important of the dropped tokens; the merged token inherits its mask bit.
    """

    indices: Tensor
    representative: Tensor

    def gather(self, values: Tensor) -> Tensor:
        """Shortens per-token values [B, L] as the tokens were: class token, kept, merged -> [B, k + 2]."""
        order = torch.cat([self.indices, self.representative], dim=1) + 1
        return torch.cat([values[:, :1], values.gather(1, order)], dim=1)


def prune_tokens(
    x: Tensor,
    scores: AttentionScores | None,
    alignment: Tensor | None,
    temperature: float,
    min_keep: int = 1,
    protected: Tensor | None = None,
) -> tuple[Tensor, Kept | None]:
    """Drops the tokens below the threshold and appends one that merges them.

    Args:
        x: [B, L, D], class token first; never changed in place.
        scores: what the layer's self-attention says of the N tokens.
        alignment: [B, N, K], inner products with the learnable tokens.
        temperature: pruning temperature T; 0 prunes nothing, infinity is allowed.
        min_keep: the layer prunes nothing if fewer tokens than this would be kept.
        protected: [B, 1], index among the N of a token that is always kept, or None.

    Returns:
        [class token, kept tokens in their order, merged token], that is [B, k + 2, D], and what was kept;
        or `x` itself and None where the layer prunes nothing.
    """
    if temperature <= 0:
        return x, None
    with torch.autocast(x.device.type, enabled=False):  # a threshold rounded to half precision misplaces tokens
        significance = importance(scores, alignment)
        passing = significance > threshold(significance, alignment, temperature)
        if protected is not None:
            passing = passing.scatter(1, protected, 1)
        keep = int(passing.sum(dim=1).max())  # the neediest sample decides, so that the batch stays rectangular
        if keep < min_keep or significance.shape[1] - keep <= 1:
            return x, None
        kept, dropped = select(significance, keep, protected)
        return shorten(x, significance, kept, dropped), kept


def importance(scores: AttentionScores, alignment: Tensor) -> Tensor:
    """S = (S_self + S_token + S_cls) / 3 of every prunable token, [B, N]."""
    significance = _share(scores.self_attention)
    significance = significance + _share(alignment.amax(dim=-1).to(significance.dtype))
    return (significance + scores.cls_attention) / 3


def threshold(significance: Tensor, alignment: Tensor, temperature: float) -> Tensor:
    """theta = min over k of sum_j softmax_j(a[j, k] / T) S[j], one per sample: [B, 1]."""
    focus = (alignment.transpose(1, 2).to(significance.dtype) / temperature).softmax(dim=-1)  # [B, K, N]
    return (focus @ significance.unsqueeze(-1)).amin(dim=1)


def select(significance: Tensor, keep: int, protected: Tensor | None = None) -> tuple[Kept, Tensor]:
    """Every sample keeps its `keep` most important tokens, in their original order.

    Returns:
        What is kept, and a mask [B, N] of what is dropped.
    """
    ranked = significance.detach()
    if protected is not None:
        ranked = ranked.scatter(1, protected, float("inf"))
    order = ranked.argsort(dim=1, descending=True, stable=True)
    kept = Kept(order[:, :keep].sort(dim=1).values, order[:, keep : keep + 1])
    dropped = torch.ones_like(significance, dtype=torch.bool).scatter(1, kept.indices, 0)
    return kept, dropped


def shorten(x: Tensor, significance: Tensor, kept: Kept, dropped: Tensor) -> Tensor:
    """[class token, kept, sum over the dropped of S_j x_j / (sum of S over the dropped + 1e-8)]."""
    weights = significance * dropped
    weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-8)
    merged = weights.unsqueeze(1).to(x.dtype) @ x[:, 1:]  # [B, 1, D]
    rows = F.pad(kept.indices + 1, (1, 0))  # the class token is row 0
    return torch.cat([x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1])), merged], dim=1)


def _share(values: Tensor) -> Tensor:
    """Divides by the sum over the tokens (+ 1e-8)."""
    return values / (values.sum(dim=1, keepdim=True) + 1e-8)
