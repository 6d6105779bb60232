"""Pruning by coverage: what is kept leaves no token far from it, and every other token goes into the one it resembles.

Which tokens stay is a facility location problem: of all sets of n tokens the one that lowers

    sum_j S_j (1 - max over kept i of cos(x_i, x_j))

the most, with S_j the importance of token j. Greedy search takes a step for every token that stays. Here the whole set
is found at once, by density peaks (Rodriguez and Laio, 2014), and then mended for all tokens together: each kept one
gives way to the best of its group (k-medoids), and those that are missed least to those that would help most. A kept
token becomes the mean of all patches that it stands for, and attention weighs it by their number (token merging, Bolya
et al., 2023). The mean of tokens that differ is shorter than they are; it may be made as long as they are on average.
Nothing here is learned, and nothing depends on the other samples of a batch.

Shapes: B batch, N prunable tokens, D width, n tokens kept.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp.method.precision import at_least_single
from madtp.method.rows import add_up, take

NEVER = 2.0  # farther than any cosine is from another
SHORTEST = 1e-8  # nothing is divided by the length of a mean that is shorter


def left_by(tokens: int, amount: float, shape: float, layer: int, depth: int) -> int:
    """How many of the N tokens of the first layer a layer leaves: n_l = N exp(-amount ((l + 1) / M)^shape).

    A small shape drops early and keeps what is left, 1 drops the same share in every layer, a large one drops late.

    Args:
        tokens: N.
        amount: how much goes; 0 is nothing, and infinity leaves one token to every layer.
        shape: above 0.
        layer: l, from 0.
        depth: M, the number of layers.
    """
    if amount == math.inf:  # times a power that is rounded to 0 it would be no number
        return 1
    return max(1, round(tokens * math.exp(-amount * ((layer + 1) / depth) ** shape)))


def importance(cls_attention: Tensor) -> Tensor:
    """S = (1 / N + C) / 2, with C the class token's attention, each as a share of its sum over the tokens: [B, N]."""
    share = cls_attention / cls_attention.sum(dim=1, keepdim=True).clamp(min=1e-8)
    return (share + 1 / share.shape[1]) / 2


def similarity(x: Tensor) -> Tensor:
    """Cosines of all pairs of tokens: [B, N, D] -> [B, N, N], at least in single precision.

    Tokens of a sample resemble each other, so that halves cannot tell their cosines apart. Their mean direction m is
    therefore put aside, and the big product, which mixed precision rounds, is that of the rest:
    u_i . u_j = (u_i - m) . (u_j - m) + u_i . m + u_j . m - m . m.
    """
    direction = F.normalize(at_least_single(x), dim=-1)
    mean = direction.mean(dim=1, keepdim=True)
    own = direction - mean
    with torch.autocast(x.device.type, enabled=False):
        common = direction @ mean.transpose(1, 2) - mean.square().sum(dim=2, keepdim=True) / 2  # [B, N, 1]
    return at_least_single(own @ own.transpose(1, 2)).add_(common).add_(common.transpose(1, 2))


def choose(cosine: Tensor, significance: Tensor, keep: int) -> Tensor:
    """The tokens to keep, in their order: [B, n].

    Args:
        cosine: [B, N, N].
        significance: [B, N], the importance S.
        keep: n, at least 1 and less than N.
    """
    kept = peaks(cosine, significance, keep)
    return exchange(cosine, significance, medoids(cosine, significance, kept))


def peaks(cosine: Tensor, significance: Tensor, keep: int) -> Tensor:
    """The n largest S_j d_j, with d_j the distance to the nearest token that is more important: [B, n]."""
    order = (significance * distances(cosine, significance)).argsort(dim=1, descending=True, stable=True)
    return order[:, :keep].sort(dim=1).values


def distances(cosine: Tensor, significance: Tensor) -> Tensor:
    """d_j of every token, [B, N]: to the nearest that is more important, and of the most important one `NEVER`."""
    rank = significance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # copies of a token have one each
    lesser = rank.unsqueeze(2) <= rank.unsqueeze(1)  # of every pair, the second is not more important
    return 1 - torch.where(lesser, 1 - NEVER, cosine).amax(dim=2)


def medoids(cosine: Tensor, significance: Tensor, kept: Tensor) -> Tensor:
    """Each kept token gives way to that of its group which covers the group best: [B, n] -> [B, n]."""
    owner, none = owners(cosine, kept), cosine.shape[1]
    together = owner.unsqueeze(2) == owner.unsqueeze(1)
    covers = (significance.unsqueeze(1) @ torch.where(together, cosine, 0)).squeeze(1)
    best = covers.new_full(kept.shape, -math.inf).scatter_reduce(1, owner, covers, "amax")
    tokens = torch.arange(none, device=kept.device).expand_as(owner)
    first = tokens.where(covers >= best.gather(1, owner), none)  # of equally good ones
    first = torch.full_like(kept, none).scatter_reduce(1, owner, first, "amin")
    return first.clamp(max=none - 1).sort(dim=1).values  # a group of NaN has no best one


def exchange(cosine: Tensor, significance: Tensor, kept: Tensor) -> Tensor:
    """One round of exchange: [B, n] -> [B, n], as many tokens stay, and they cover no less.

    Of what each kept token covers the best newcomer may come, and a kept token may go whose nearest kept one is no
    cheaper. The best newcomers come for the cheapest that go, pair by pair while that gains, of these the better half.
    """
    near, keep = take(cosine, kept), kept.shape[1]
    best, owner = near.max(dim=1)
    second = near.scatter(1, owner.unsqueeze(1), -NEVER).amax(dim=1).clamp(min=-1)
    loss = torch.zeros_like(near[:, :, 0]).scatter_add(1, owner, significance * (best - second))
    gain = (significance.unsqueeze(1) @ (cosine - best.unsqueeze(2)).relu_()).squeeze(1).scatter(1, kept, 0)
    comes = gain >= torch.zeros_like(loss).scatter_reduce(1, owner, gain, "amax").gather(1, owner)
    among = near.gather(2, kept.unsqueeze(1).expand(-1, keep, -1))
    neighbour = among.diagonal_scatter(torch.full_like(loss, -NEVER), dim1=1, dim2=2).max(dim=1).indices
    goes = loss <= loss.gather(1, neighbour)
    gains, newcomers = gain.masked_fill(~comes, -1).scatter(1, kept, -1).sort(dim=1, descending=True, stable=True)
    losses, leavers = loss.masked_fill(~goes, math.inf).sort(dim=1, stable=True)
    swaps = gains[:, :keep] > losses
    swaps = swaps & (swaps.cumsum(dim=1) <= (swaps.sum(dim=1, keepdim=True) + 1) // 2)
    after = kept.scatter(1, leavers, torch.where(swaps, newcomers[:, :keep], kept.gather(1, leavers)))
    gained = significance * (take(cosine, after).amax(dim=1) - best)
    return torch.where(gained.sum(dim=1, keepdim=True) > 0, after, kept).sort(dim=1).values


def owners(cosine: Tensor, kept: Tensor) -> Tensor:
    """Which of the kept tokens each token goes into, the one most like it; a kept one is its own: [B, N]."""
    nearest = take(cosine, kept).max(dim=1).indices
    return nearest.scatter(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))


def absorb(x: Tensor, sizes: Tensor, owner: Tensor, keep: int, keep_norm: bool = False) -> tuple[Tensor, Tensor]:
    """Every kept token becomes the mean of what goes into it, weighed by sizes.

    Args:
        x: [B, N, D].
        sizes: [B, N], how many patches each stands for.
        owner: [B, N], which of the kept ones each goes into.
        keep: n.
        keep_norm: whether each is made as long as what goes into it.

    Returns:
        The kept tokens [B, n, D] and their sizes [B, n].
    """
    total = sizes.new_zeros(x.shape[0], keep).scatter_add(1, owner, sizes)
    shares, exact = sizes / total.gather(1, owner), at_least_single(x)
    merged = add_up(exact * shares.unsqueeze(2), owner, keep)
    return (as_long(merged, exact, shares, owner) if keep_norm else merged).to(x.dtype), total


def as_long(merged: Tensor, x: Tensor, shares: Tensor, owner: Tensor) -> Tensor:
    """Means of tokens, as long as these are on average: m_i sum_j w_j |x_j| / |m_i| over all j that went into i.

    Equal tokens come out as they were.

    Args:
        merged: [B, n, D], the means m.
        x: [B, N, D], what they are made of.
        shares: [B, N], the weights w, which add up to 1 in every mean.
        owner: [B, N], which of the n each goes into.
    """
    lengths = torch.zeros_like(merged[:, :, 0]).scatter_add(1, owner, shares * x.norm(dim=2))
    return merged * (lengths / merged.norm(dim=2).clamp(min=SHORTEST)).unsqueeze(2)
