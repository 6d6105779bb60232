"""Rules of keeping tokens to hold MADTP against: itself with parts left out or replaced, and other methods.

Each is a layout, that is what a layer asks to attend and to prune (see `madtp/method/layout.py`), made anew for
every forward pass. The models know nothing of them. Where MADTP has its temperature, every rule has one knob that says
how much goes.

Shapes: B samples, L tokens with the class token in front, N = L - 1, D width, H heads, E = D / H, K learnable tokens,
k tokens kept.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp.method.attention import AttentionScores
from madtp.method.keep import Keep
from madtp.method.layout import Rectangle, Sequences
from madtp.method.pruning import Kept, assess, merge, merge_weights, select, threshold

Judge = Callable[[AttentionScores, Tensor, float], tuple[Tensor, Tensor]]


class Whole(Rectangle):
    """Keeps everything."""

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        return x, self, None


class Listening(Whole):
    """Keeps everything, and notes how widely the inner products with the learnable tokens spread over the tokens.

    Attributes:
        spreads: of every layer, the standard deviation over the tokens, mean over samples and learnable tokens.
    """

    def __init__(self):
        self.spreads: list[float] = []

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        self.spreads.append(float(alignment.std(dim=1).mean()))
        return x, self, None


class Pruning(Rectangle):
    """MADTP by the rule `batch`, some part of which is left out or replaced.

    Args:
        judge: tells the importance of every token and which of them pass, as `madtp.method.pruning.assess` does.
        merged: whether the dropped tokens become one; else nothing stands for them, and one more is kept.
        random: whether chance decides which tokens stay, as many as pass.
    """

    def __init__(self, judge: Judge = assess, merged: bool = True, random: bool = False):
        self.judge, self.merged, self.random = judge, merged, random

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        if temperature <= 0:  # without scores, as in a captioner's texts
            return x, self, None
        significance, passing = self.judge(scores, alignment, temperature)
        keep = int(passing.sum(dim=1).max())
        if keep < min_keep or significance.shape[1] - keep <= 1:
            return x, self, None
        ranked = torch.rand_like(significance) if self.random else significance
        if not self.merged:
            shortened, kept = keep_only(x, ranked, keep + 1)
            return shortened, self, kept
        kept, dropped = select(ranked, keep)
        merged = merge(x[:, 1:], merge_weights(significance, dropped))
        return torch.cat([take(x, kept.rows[:, :-1]), merged], dim=1), self, kept


class Scheduled(Rectangle):
    """Drops the same number of tokens in every layer: the knob is their share of the N that entered the first.

    Args:
        tokens: N of the first layer.
        layer: the layer that prunes next.
    """

    def __init__(self, tokens: int, layer: int = 0):
        self.tokens, self.layer = tokens, layer

    @classmethod
    def of(cls, x: Tensor) -> "Scheduled":
        """The layout of tokens [B, L, D] that enter the first layer."""
        return cls(x.shape[1] - 1)

    def keep(self, share: float) -> int:
        """How many of the N tokens this layer leaves, 1 at least; what is rounded off is made up for in later ones."""
        return max(1, self.tokens - round(self.tokens * min(1.0, share * (self.layer + 1))))


class Static(Scheduled):
    """Keeps those that the class token attends to most; nothing stands for the others."""

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        after, keep = Static(self.tokens, self.layer + 1), self.keep(temperature)
        if keep >= x.shape[1] - 1:
            return x, after, None
        shortened, kept = keep_only(x, scores.cls_attention, keep)
        return shortened, after, kept


class Merging(Scheduled):
    """Token merging (ToMe; Bolya et al., 2023): bipartite soft matching on the keys, and proportional attention.

    Args:
        tokens: N of the first layer.
        layer: the layer that merges next.
        size: [B, L, 1], how many patches each token stands for; None is one each.
    """

    def __init__(self, tokens: int, layer: int = 0, size: Tensor | None = None):
        super().__init__(tokens, layer)
        self.size, self.key = size, None

    def attend(self, query, key, value, mask=None, causal=False, scores=False, dropout=0.0):
        self.key = key.mean(dim=1)  # [B, L, E], what this layer's tokens are compared by
        bias = None if self.size is None else self.size.log().transpose(1, 2).unsqueeze(1)  # [B, 1, 1, L]
        return F.scaled_dot_product_attention(query, key, value, bias, dropout), None

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        tokens = x.shape[1] - 1
        number = min(tokens - self.keep(temperature), tokens // 2)
        size = torch.ones_like(x[..., :1]) if self.size is None else self.size
        if number > 0:
            x, size = merge_alike(x, self.key, size, number)
        return x, Merging(self.tokens, self.layer + 1, size), None


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Some tokens of every sample: [B, L, D] and their places [B, k] to [B, k, D]."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def keep_only(x: Tensor, ranked: Tensor, keep: int) -> tuple[Tensor, Kept]:
    """The class token and the `keep` tokens ranked highest by [B, N], in their order; nothing stands for the others."""
    rows = select(ranked, keep)[0].rows[:, : keep + 1]
    return take(x, rows), Kept(rows, merges=torch.zeros(len(x), dtype=torch.bool, device=x.device))


def merge_alike(x: Tensor, key: Tensor, size: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Every other token looks for the one most like it among the rest; the `number` closest pairs become one token.

    Args:
        x: [B, L, D], class token first, which is never merged.
        key: [B, L, E], what tokens are compared by.
        size: [B, L, 1], how many patches a token stands for; merged tokens are the mean over all of theirs.
        number: pairs to merge, N / 2 at most.

    Returns:
        The tokens [B, L - number, D] and their sizes.
    """
    direction = F.normalize(key[:, 1:], dim=-1)
    best, partner = (direction[:, ::2] @ direction[:, 1::2].transpose(1, 2)).max(dim=2)
    order = best.argsort(dim=1, descending=True, stable=True)
    going, staying = order[:, :number], order[:, number:].sort(dim=1).values
    target = partner.gather(1, going)

    def summed(values: Tensor) -> Tensor:
        first, second = values[:, 1::2], values[:, 2::2]
        width = target.unsqueeze(-1).expand(-1, -1, values.shape[-1])
        return torch.cat([take(first, staying), second.scatter_add(1, width, take(first, going))], dim=1)

    sizes = summed(size)
    return torch.cat([x[:, :1], summed(x * size) / sizes], dim=1), torch.cat([size[:, :1], sizes], dim=1)


def unguided(scores: AttentionScores, alignment: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """What attention alone tells: S = (S_self + S_cls) / 2, and a threshold that S itself decides.

    As T grows it rises from the least importance to the mean, as MADTP's does.
    """
    significance = (share(scores.self_attention) + scores.cls_attention) / 2
    unimportance = -significance.shape[1] * significance  # about -1, so that temperatures are about 1
    return significance, significance > threshold(significance, unimportance.unsqueeze(-1), temperature)


def by_one_score(which: str) -> Judge:
    """MADTP whose importance is "self", "token" or "cls" attention alone."""

    def judge(scores: AttentionScores, alignment: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        significance = {
            "self": share(scores.self_attention),
            "token": share(alignment.amax(dim=-1)),
            "cls": scores.cls_attention,
        }[which]
        return significance, significance > threshold(significance, alignment, temperature)

    return judge


def share(values: Tensor) -> Tensor:
    """Divides by the sum over the tokens (+ 1e-8)."""
    return values / (values.sum(dim=1, keepdim=True) + 1e-8)


def by_tower(image: Callable[[Tensor], Rectangle], text: Callable[[Tensor], Rectangle]) -> Keep:
    """A rule of keeping that makes one layout for images and another for texts, which alone may have padding."""

    def keep(x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
        return Sequences(x, (image if own is None else text)(x))

    return keep
