"""Dynamic token pruning (DTP), from the importance of a token to the shortened sequence.

Shapes: B batch, N prunable tokens, L = N + 1 with the class token in front, D width, K learnable tokens, k tokens kept.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp.method.attention import AttentionScores
from madtp.method.precision import exact
from madtp.method.rows import take


class Kept(NamedTuple):
    """What a layer left of its sequences: class token, kept tokens in their order, merged token.

    Attributes:
        rows: [B, L'], where in its sequence each token stood; for the merged token, the most important of the dropped,
            whose mask bit it inherits. Beyond a sequence's own end: 0.
        lengths: [B], tokens left of each sequence; None where all have L'.
        merges: [B], which sequences dropped tokens and end with a merged one; None where all do.
        groups: [B, N], which of the kept tokens, from 0, each went into; None of a rule that merges what it drops into
            one token. With groups no merged token stands at the end.
    """

    rows: Tensor
    lengths: Tensor | None = None
    merges: Tensor | None = None
    groups: Tensor | None = None

    @property
    def indices(self) -> Tensor:
        """[B, k], the kept ones among the N prunable tokens, where every sample keeps k of them."""
        return (self.rows[:, 1:-1] if self.groups is None else self.rows[:, 1:]) - 1

    @property
    def own(self) -> Tensor | None:
        """[B, L'], True where there is a token; None is everywhere."""
        return None if self.lengths is None else own_tokens(self.lengths, self.rows.shape[1])

    def gather(self, values: Tensor) -> Tensor:
        """Shortens per-token values [B, L] as the tokens were: [B, L'], zeros beyond a sequence's end."""
        values = values.gather(1, self.rows)
        return values if self.lengths is None else values.masked_fill(~self.own, 0)

    def place(self, token: Tensor) -> Tensor:
        """Where tokens that were kept stand now: [B] -> [B]."""
        return (self.rows == token.unsqueeze(1)).to(torch.uint8).argmax(dim=1)

    def of(self, sample: int) -> list[int]:
        """The kept ones among the prunable tokens of a sample, ascending from 0."""
        merged = self.groups is None and (self.merges is None or bool(self.merges[sample]))
        end = (self.rows.shape[1] if self.lengths is None else int(self.lengths[sample])) - merged
        return (self.rows[sample, 1:end] - 1).tolist()


def prune_tokens(
    x: Tensor,
    scores: AttentionScores | None,
    alignment: Tensor | None,
    temperature: float,
    min_keep: int = 1,
    protected: Tensor | None = None,
) -> tuple[Tensor, Kept | None]:
    """Drops the tokens below the threshold and appends one that merges them; the neediest sample decides how many.

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
    if temperature <= 0 or not len(x):
        return x, None
    with exact(x.device.type):  # a threshold rounded to half precision misplaces tokens
        significance, passing = assess(scores, alignment, temperature, protected)
        keep = int(passing.sum(dim=1).max())  # so that the batch stays rectangular
        if keep < min_keep or significance.shape[1] - keep <= 1:
            return x, None
        ranked = behind_class_token(significance)
        kept, gone = select(ranked if protected is None else ranked.scatter(1, protected + 1, float("inf")), keep + 1)
        merged = merge(take(x, gone), merge_weights(ranked.gather(1, gone)))  # of these alone: training keeps them
        return torch.cat([take(x, kept.rows[:, :-1]), merged], dim=1), kept


def assess(
    scores: AttentionScores,
    alignment: Tensor,
    temperature: float,
    protected: Tensor | None = None,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The importance of every token, and which of them pass their sample's threshold: [B, N] each.

    Args:
        scores: zero where there is no token.
        alignment: [B, N, K].
        temperature: pruning temperature T.
        protected: [B, 1], index of a token that always passes, or None.
        own: [B, N], True where there is a token; None is everywhere.
    """
    significance = importance(scores, alignment, own)
    passing = significance > threshold(significance, alignment, temperature, own)
    if own is not None:
        passing = passing & own
    return significance, passing if protected is None else passing.scatter(1, protected, 1)


def importance(scores: AttentionScores, alignment: Tensor, own: Tensor | None = None) -> Tensor:
    """S = (S_self + S_token + S_cls) / 3 of every prunable token, [B, N]; 0 where there is none."""
    itself, token, cls = importance_parts(scores, alignment, own)
    return (itself + token + cls) / 3


def importance_parts(
    scores: AttentionScores, alignment: Tensor, own: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """S_self, S_token and S_cls of every prunable token, [B, N] each; 0 where there is none."""
    itself = _share(scores.self_attention)
    token = alignment.amax(dim=-1).to(itself.dtype)
    return itself, _share(token if own is None else token.where(own, 0)), scores.cls_attention


def threshold(significance: Tensor, alignment: Tensor, temperature: float, own: Tensor | None = None) -> Tensor:
    """theta = min over k of sum_j softmax_j(a[j, k] / T) S[j], one per sample: [B, 1]."""
    focus = alignment.transpose(1, 2).to(significance.dtype) / temperature  # [B, K, N]
    if own is not None:
        focus = focus.masked_fill(~own.unsqueeze(1), float("-inf"))
    return (focus.softmax(dim=-1) @ significance.unsqueeze(-1)).amin(dim=1)


def behind_class_token(significance: Tensor) -> Tensor:
    """The importance of all tokens, infinite of the class token, which always stays: [B, N] -> [B, L]."""
    return F.pad(significance, (1, 0), value=float("inf"))


def select(ranked: Tensor, keep: int) -> tuple[Kept, Tensor]:
    """Every sample keeps its `keep` most important tokens, in their original order.

    Args:
        ranked: [B, L], the importance, infinite of what must stay.
        keep: the class token included.

    Returns:
        What is kept; and the rows [B, L - keep] of what is not, the most important first.
    """
    order = ranked.detach().argsort(dim=1, descending=True, stable=True)
    kept, gone = order[:, :keep].sort(dim=1).values, order[:, keep:]
    return Kept(torch.cat([kept, gone[:, :1]], dim=1)), gone


def select_own(
    significance: Tensor, passing: Tensor, min_keep: int | Tensor, own: Tensor
) -> tuple[Kept | None, Tensor]:
    """Every sample keeps its own passing tokens, however many they are for the others.

    Args:
        significance: [B, N].
        passing: [B, N].
        min_keep: a number or [B]; a sample of which fewer tokens would be kept keeps all.
        own: [B, N], True where there is a token.

    Returns:
        What is kept, None where no sample drops anything; and a mask [B, N] of what is dropped.
    """
    count = passing.sum(dim=1)
    merges = (count >= min_keep) & (own.sum(dim=1) - count > 1)
    stays = torch.where(merges.unsqueeze(1), passing, own)
    dropped = own & ~stays
    if not bool(merges.any()):
        return None, dropped
    lengths = 1 + stays.sum(dim=1) + merges
    batch, tokens = stays.shape
    place = stays.cumsum(dim=1).where(stays, tokens + 1)  # what goes, goes into a last column that is cut off
    numbers = torch.arange(1, tokens + 1, device=stays.device).expand(batch, -1)
    rows = place.new_zeros(batch, tokens + 2).scatter(1, place, numbers)
    first_dropped = significance.detach().masked_fill(~dropped, float("-inf")).argmax(dim=1) + 1
    last = (lengths - 1).unsqueeze(1)
    rows = rows.scatter(1, last, torch.where(merges.unsqueeze(1), first_dropped.unsqueeze(1), rows.gather(1, last)))
    rows = rows[:, : int(lengths.max())]
    return Kept(rows.where(own_tokens(lengths, rows.shape[1]), 0), lengths, merges), dropped


def pass_alike(significance: Tensor, passing: Tensor, together: int, own: Tensor) -> Tensor:
    """Of sequences that belong to one sample, each passes as many tokens as the neediest, its most important ones.

    Args:
        significance: [B, N]; the sequences of a sample are B / together apart.
        passing: [B, N].
        together: sequences of a sample.
        own: [B, N], True where there is a token.
    """
    count = passing.sum(dim=1).view(together, -1).amax(dim=0).repeat(together)
    ranked = significance.detach().masked_fill(~own, float("-inf"))
    order = ranked.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(passing).scatter(1, order, own_tokens(count, passing.shape[1]))


def own_tokens(lengths: Tensor, longest: int) -> Tensor:
    """[B, longest], True for as many tokens as each sequence has."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def merge_weights(dropped: Tensor) -> Tensor:
    """w = S / (sum of S over the dropped tokens + 1e-8), from an importance that is 0 of all others: [B, N]."""
    return _share(dropped)


def merge(tokens: Tensor, weights: Tensor) -> Tensor:
    """One token [B, 1, D] that stands for several, sum_j w_j x_j, of tokens [B, N, D] and weights [B, N]."""
    return weights.unsqueeze(1).to(tokens.dtype) @ tokens


def _share(values: Tensor) -> Tensor:
    """Divides by the sum over the tokens (+ 1e-8)."""
    return values / (values.sum(dim=1, keepdim=True) + 1e-8)
