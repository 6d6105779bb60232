"""Rules that drop no token: each goes into one that stays, which becomes the mean of all it stands for.

A rule says by a schedule how many groups a layer leaves, and chooses which tokens form a group. Attention to groups
weighs them by their size, in the image tower and, unless a rule does without, wherever a text attends to them.

Shapes: B samples, L tokens with the class token in front, N = L - 1, D width, H heads, E = D / H, n groups.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comparison.rules import share
from benchmarks.comparison.schedules import Scheduled, Steps
from madtp.cost.trace import LayerTrace
from madtp.method import coverage
from madtp.method.attention import AttentionScores
from madtp.method.layout import Sequences
from madtp.method.pruning import Kept
from madtp.method.rows import add_up, followed, take


class Tokens(NamedTuple):
    """What a choice is made by.

    Attributes:
        key: [B, N, E], the mean over the heads.
        size: [B, N], how many patches each stands for.
        scores: of attention, for rules that ask for them.
        layer: its number.
    """

    key: Tensor
    size: Tensor
    scores: AttentionScores | None
    layer: int

    @property
    def direction(self) -> Tensor:
        """Keys of length 1."""
        return F.normalize(self.key, dim=-1)


Choice = Callable[[Tokens, int], Tensor]  # of tokens and the number n of groups: the group 0 ... n - 1 of each, [B, N]


@dataclass(frozen=True)
class Merger:
    """A rule of merging.

    Attributes:
        choose: which tokens form a group.
        most: the share of its tokens that a layer can merge at most.
        products: how many inner products of keys it takes for N tokens of which n are left.
        scored: whether it asks for the scores of attention.
        across: whether texts, too, weigh groups by their size.
        lengths: whether a group stays as long as its tokens; see `madtp.method.coverage.as_long`.
    """

    choose: Choice
    most: float = 1.0
    products: Callable[[int, int], float] = lambda tokens, groups: tokens * tokens
    scored: bool = False
    across: bool = True
    lengths: bool = False

    def cost(self, layer: LayerTrace, width: int, head_width: int) -> float:
        """Multiply-accumulates of its own in a layer: similarities, and the means where tokens are merged."""
        tokens, groups = layer.entered - 1, layer.left - 1
        if groups == tokens:
            return 0.0
        return self.products(tokens, groups) * head_width + tokens * width


class Merging(Scheduled):
    """Merges by a rule, as much as a schedule says.

    Args:
        steps: the schedule, and where in the tower it is.
        rule: chooses the groups.
        size: [B, L], how many patches each token stands for, class token included; None is one each.
        places: [B, N of the first layer], which of the tokens left every patch is part of; None where nothing merged.
    """

    guided = False

    def __init__(self, steps: Steps, rule: Merger, size: Tensor | None = None, places: Tensor | None = None):
        super().__init__(steps)
        self.rule, self.size, self.places, self.key = rule, size, places, None

    def attend(self, query, key, value, mask=None, causal=False, scores=False, dropout=0.0):
        self.key = key.mean(dim=1)  # what this layer's tokens are compared by
        bias = None if self.size is None else self.size.log()[:, None, None, :].to(query.dtype)
        if not (scores and self.rule.scored):
            return F.scaled_dot_product_attention(query, key, value, bias, dropout), None
        return attend_and_score(query, key, value, bias)

    def seen_from_outside(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if self.size is None or not self.rule.across:
            return super().seen_from_outside(mask, dtype)
        bias = self.size.log() if mask is None else self.size.log().masked_fill(~mask, float("-inf"))
        return bias[:, None, None, :].to(dtype)

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        count = x.shape[1] - 1
        groups = max(self.steps.left(temperature), count - int(self.rule.most * count))
        size = x.new_ones(x.shape[:2], dtype=torch.float32) if self.size is None else self.size
        kept, places = None, self.places
        if groups < count:
            owner = self.rule.choose(Tokens(self.key[:, 1:].float(), size[:, 1:], scores, self.steps.layer), groups)
            x, size = (gather_as_long if self.rule.lengths else gather_groups)(x, size, owner, groups)
            kept = Kept(F.pad(first_of(owner, groups) + 1, (1, 0)), groups=owner)
            places = followed(places, owner)
        return x, Merging(self.steps.next(), self.rule, size, places), kept

    def chunk(self, x: Tensor, parts: int) -> list[Sequences]:
        sizes = [None] * parts if self.size is None else self.size.chunk(parts)
        return [Sequences(part, self._with(size)) for part, size in zip(x.chunk(parts), sizes, strict=True)]

    def take(self, x: Tensor, samples: Tensor | list[int]) -> Sequences:
        return Sequences(x[samples], self._with(None if self.size is None else self.size[samples]))

    def to(self, device: str | torch.device) -> "Merging":
        return self._with(None if self.size is None else self.size.to(device))

    def _with(self, size: Tensor | None) -> "Merging":
        return Merging(self.steps, self.rule, size)


def attend_and_score(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, AttentionScores]:
    """Attention weighed by sizes, and its scores, from a map held whole; see `madtp.method.attention.attend`."""
    logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)  # [B, H, L, L]
    output = weights.to(value.dtype) @ value
    itself = weights[:, :, 1:, 1:].amax(dim=1).sum(dim=1)
    norms = output[:, :, 1:].float().norm(dim=-1)
    cls = (weights[:, :, 0, 1:] * norms).sum(dim=1) / (norms.sum(dim=1) + 1e-8)
    return output, AttentionScores(itself, cls)


def gather_groups(x: Tensor, size: Tensor, owner: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The class token and the mean of every group over the patches that it stands for.

    Args:
        x: [B, L, D].
        size: [B, L].
        owner: [B, N], the group of each token.
        groups: n; every one has a token.

    Returns:
        [B, 1 + n, D] and their sizes [B, 1 + n].
    """
    place = F.pad(owner + 1, (1, 0))  # the class token is a group of its own
    wide = x if x.dtype.itemsize >= 4 else x.float()
    weighed = wide * size.unsqueeze(-1).to(wide.dtype)
    sums = add_up(weighed, place, 1 + groups)
    sizes = size.new_zeros(len(x), 1 + groups).scatter_add(1, place, size)
    return (sums / sizes.unsqueeze(-1).to(sums.dtype)).to(x.dtype), sizes


def gather_as_long(x: Tensor, size: Tensor, owner: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """As `gather_groups`, each group as long as its tokens are on average."""
    merged, total = coverage.absorb(x[:, 1:], size[:, 1:], owner, groups, keep_norm=True)
    return torch.cat([x[:, :1], merged], dim=1), torch.cat([size[:, :1], total], dim=1)


def first_of(owner: Tensor, groups: int) -> Tensor:
    """The first token of every group: [B, N], the group of each token, to places [B, groups]."""
    places = torch.arange(owner.shape[1], device=owner.device).expand_as(owner)
    return places.new_zeros(len(owner), groups).scatter_reduce(1, owner, places, "amin", include_self=False)


def groups_of(going: Tensor, target: Tensor, tokens: int) -> Tensor:
    """The group [B, N] of every token where the `going` [B, k] join the `target` [B, k], which all stay."""
    stays = torch.ones(len(going), tokens, dtype=torch.long, device=going.device).scatter(1, going, 0)
    place = stays.cumsum(dim=1) - 1
    return place.scatter(1, going, place.gather(1, target))


def alternating(tokens: Tokens, groups: int) -> Tensor:
    """ToMe (Bolya et al., 2023): every other token looks among the rest, and the closest pairs become one."""
    count, direction = tokens.key.shape[1], tokens.direction
    best, partner = (direction[:, ::2] @ direction[:, 1::2].transpose(1, 2)).max(dim=2)
    going = best.argsort(dim=1, descending=True, stable=True)[:, : count - groups]
    return groups_of(2 * going, 2 * partner.gather(1, going) + 1, count)


def redundant(depth: int) -> Choice:
    """PiToMe (Tran et al., 2024): of tokens in dense regions of keys, every other one joins the rest's most similar.

    A token's energy is the mean over all tokens of cos where that is above a margin, and of exp(cos - margin) - 1
    where it is not; the margin falls from .9 at the first of `depth` layers to 0.
    """

    def choose(tokens: Tokens, groups: int) -> Tensor:
        count, direction = tokens.key.shape[1], tokens.direction
        cosine, margin = direction @ direction.transpose(1, 2), 0.9 - 0.9 * tokens.layer / depth
        energy = torch.where(cosine >= margin, cosine, (cosine - margin).exp() - 1).mean(dim=2)
        order = energy.argsort(dim=1, descending=True, stable=True)[:, : 2 * (count - groups)]
        going, staying = order[:, ::2], order[:, 1::2]
        partner = take(take(cosine, going).transpose(1, 2), staying).argmax(dim=1)
        return groups_of(going, staying.gather(1, partner), count)

    return choose


def absorbed(ranked: Tensor, direction: Tensor, groups: int) -> Tensor:
    """The highest ranked [B, N] stay, each other token goes into the one of these that its key is most like."""
    kept = ranked.argsort(dim=1, descending=True, stable=True)[:, :groups].sort(dim=1).values
    owner = (direction @ take(direction, kept).transpose(1, 2)).argmax(dim=2)  # [B, N]
    return owner.scatter(1, kept, torch.arange(groups, device=kept.device).expand_as(kept))


def important(tokens: Tokens, groups: int) -> Tensor:
    """The most important ones stay, S = (S_self + S_cls) / 2."""
    return absorbed(attention_importance(tokens.scores), tokens.direction, groups)


def by_chance(tokens: Tokens, groups: int) -> Tensor:
    """Chance says which stay."""
    return absorbed(torch.rand_like(tokens.size), tokens.direction, groups)


def attention_importance(scores: AttentionScores) -> Tensor:
    """(S_self + S_cls) / 2 of every token, each divided by its sum: [B, N]."""
    return (share(scores.self_attention) + share(scores.cls_attention)) / 2


def to_the_kept(tokens: int, groups: int) -> float:
    """Inner products of each token with those that stay."""
    return tokens * groups


TOME = Merger(alternating, most=0.5, products=lambda tokens, groups: tokens * tokens / 4)
TOME_LENGTHENED = replace(TOME, lengths=True)
TOME_WITHIN = Merger(alternating, most=0.5, products=TOME.products, across=False)
IMPORTANT = Merger(important, products=to_the_kept, scored=True)
RANDOM = Merger(by_chance, products=to_the_kept)


def pitome(depth: int) -> Merger:
    """PiToMe in a tower of so many layers."""
    return Merger(redundant(depth), most=0.5)
