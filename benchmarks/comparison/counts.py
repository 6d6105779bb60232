"""Coverage with a count for every sample: one that has more to cover keeps more of its tokens, a plain one fewer.

How much there is to cover is r = sum_j S_j d_j before the first token goes, with S_j the importance of token j and d_j
its distance to the nearest one that is more important. A sample's amount is the rule's divided by its r, so that it
loses as much in any company: n_l = N exp(-amount / r ((l + 1) / M)^shape), of M layers.

Shapes: B samples, L tokens of the longest with the class token in front, N = L - 1, D width.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from madtp.method import coverage
from madtp.method.attention import AttentionScores
from madtp.method.layout import Sequences
from madtp.method.merged import HIDDEN, Merged, Schedule
from madtp.method.precision import accumulator

GRADES = 16  # of an octave of r: samples that hardly differ are handled together


@dataclass(frozen=True)
class Counted:
    """The rule of keeping; see `madtp.method.keep.Coverage`, in whose place its shape is searched."""

    depth: int
    shape: float = 1.0
    texts = False

    def __call__(self, x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
        """x [B, L, D] with sizes of one patch each."""
        sizes = torch.ones_like(x[..., 0], dtype=accumulator(x.dtype))
        return Sequences(x, OwnCounts(Schedule(self.depth, self.shape, x.shape[1] - 1), sizes))


class OwnCounts(Merged):
    """[B, L, D], each sample's own tokens to the left, those beyond its end without size.

    Args:
        schedule: how many tokens go where.
        sizes: [B, L].
        rich: r of each sample; None before the first layer.
    """

    def __init__(self, schedule: Schedule, sizes: Tensor, rich: list[float] | None = None):
        super().__init__(schedule, sizes)
        self.rich = rich

    def lengths(self, x: Tensor) -> np.ndarray:
        return (self.sizes_of_tokens > HIDDEN).sum(dim=1).cpu().numpy()

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        rich = self.rich or richness(x[:, 1:].detach(), scores.cls_attention.detach())
        alike = defaultdict(list)
        for sample, key in enumerate(zip(self.lengths(x).tolist(), rich, strict=True)):
            alike[key].append(sample)
        tokens, sizes = {}, {}
        for (length, own), samples in alike.items():
            layout = Merged(self.schedule, self.sizes_of_tokens[samples, :length])
            own_scores = AttentionScores(None, scores.cls_attention[samples, : length - 1])
            left, layout, _ = layout.prune(x[samples, :length], own_scores, None, temperature / own)
            tokens |= dict(zip(samples, left, strict=True))
            sizes |= dict(zip(samples, layout.sizes_of_tokens, strict=True))
        padded = pad_sequence([sizes[sample] for sample in range(len(x))], batch_first=True, padding_value=HIDDEN)
        x = pad_sequence([tokens[sample] for sample in range(len(x))], batch_first=True)
        return x, OwnCounts(self.schedule.next(), padded, rich), None


def richness(x: Tensor, cls_attention: Tensor) -> list[float]:
    """r of every sample, in steps: tokens x [B, N, D], the class token's attention to them [B, N]."""
    cosine = coverage.similarity(x)
    significance = coverage.importance(cls_attention).to(cosine.dtype)
    distance = coverage.distances(cosine, significance).clamp(max=1)  # the first is at 1 from nothing
    rich = (significance * distance).sum(dim=1).clamp(min=1e-4)
    return torch.exp2((GRADES * rich.log2()).round() / GRADES).tolist()
