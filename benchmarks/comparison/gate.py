"""Coverage whose choice a loss can reach: a straight-through gate in the sizes of the tokens that stay.

What a kept token covers that no other would, c_i = sum over its group of S_j (cos(x_i, x_j) - the next best's), opens
its gate: g_i = log sigma((c_i - c_least) / mean of c). Its size becomes s_i exp(g_i - stop(g_i)). That is the same
number, so attention weighs the token as before. But it has a gradient, which says whether the token should have covered
more, and which goes on to importance and to cosines, by which tokens are chosen.

Shapes: B batch, N prunable tokens, D width, n tokens kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp.method import coverage
from madtp.method.merged import Merged
from madtp.method.pruning import Kept
from madtp.method.rows import take


class Gated(Merged):
    """As `Merged`, with gates where gradients are wanted."""

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        left, after, kept = super().prune(x, scores, alignment, temperature, min_keep, protected)
        sizes, front = after.sizes_of_tokens, self.schedule.prefix
        if kept is not None and torch.is_grad_enabled():
            gates = opened(x[:, front:], scores.cls_attention, kept, front)
            sizes = torch.cat([sizes[:, :front], sizes[:, front:] * gates.to(sizes.dtype)], dim=1)
        return left, Gated(after.schedule, sizes, after.places), kept


def opened(x: Tensor, cls_attention: Tensor, kept: Kept, front: int) -> Tensor:
    """1 for every token that stays, with the gate's gradient: [B, n].

    Args:
        x: [B, N, D], the tokens that were chosen among.
        cls_attention: [B, N].
        kept: which of them stay, and into which each goes.
        front: tokens in front that always stay.
    """
    with torch.autocast(x.device.type, enabled=False):
        covered = uniquely_covered(coverage.similarity(x), cls_attention, kept.rows[:, front:] - front, kept.groups)
        least, mean = covered.detach().amin(dim=1, keepdim=True), covered.detach().mean(dim=1, keepdim=True)
        gate = F.logsigmoid((covered - least) / mean.clamp(min=1e-8))
        return torch.exp(gate - gate.detach())


def uniquely_covered(cosine: Tensor, cls_attention: Tensor, kept: Tensor, owner: Tensor) -> Tensor:
    """c_i, what would be lost without each token that stays: [B, n].

    Args:
        cosine: [B, N, N].
        cls_attention: [B, N].
        kept: [B, n], the places of those that stay.
        owner: [B, N], which of them each token goes into.
    """
    near, own = take(cosine, kept), owner.unsqueeze(1)  # [B, n, N]
    next_best = near.detach().scatter(1, own, -coverage.NEVER).amax(dim=1).clamp(min=-1)
    gained = coverage.importance(cls_attention.to(cosine.dtype)) * (near.gather(1, own).squeeze(1) - next_best)
    return torch.zeros_like(near[:, :, 0]).scatter_add(1, owner, gained)
