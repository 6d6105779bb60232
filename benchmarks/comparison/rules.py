"""Rules of keeping tokens to hold MADTP against: itself with parts left out or replaced, and other methods.

Each is a layout, that is what a layer asks to attend and to prune (see `madtp/method/layout.py`), made anew for every
forward pass. The models know nothing of them. Where MADTP has its temperature, every rule has one knob that says how
much goes.

Shapes: B samples, L tokens with the class token in front, N = L - 1, D width, H heads, E = D / H, K learnable tokens,
k tokens kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.comparison.schedules import Scheduled
from madtp.method.attention import AttentionScores
from madtp.method.keep import Keep
from madtp.method.layout import Rectangle, Sequences
from madtp.method.pruning import Kept, assess, behind_class_token, merge, merge_weights, select, threshold
from madtp.method.rows import take

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
        kept, gone = select(behind_class_token(ranked), keep + 1)
        merged = merge(take(x, gone), merge_weights(behind_class_token(significance).gather(1, gone)))
        return torch.cat([take(x, kept.rows[:, :-1]), merged], dim=1), self, kept


class Static(Scheduled):
    """Keeps those that the class token attends to most; nothing stands for the others."""

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        after, keep = Static(self.steps.next()), self.steps.left(temperature)
        if keep >= x.shape[1] - 1:
            return x, after, None
        shortened, kept = keep_only(x, scores.cls_attention, keep)
        return shortened, after, kept


def keep_only(x: Tensor, ranked: Tensor, keep: int) -> tuple[Tensor, Kept]:
    """The class token and the `keep` tokens ranked highest by [B, N], in their order; nothing stands for the others."""
    kept, _ = select(behind_class_token(ranked), keep + 1)
    rows = kept.rows[:, : keep + 1]
    return take(x, rows), Kept(rows, merges=torch.zeros(len(x), dtype=torch.bool, device=x.device))


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
