"""Coverage guided by the text: what a text will look at is foretold from the image, and counts as importance too.

A vector w_l of every layer foretells the share of the text's attention that a token x_j of size s_j gets,

    G_j = softmax_j(log s_j + w_l . LN(x_j) / sqrt(D)),

and has half of the say that the class token's attention C has in coverage: S = (1 / N + (C + G) / 2) / 2.

Shapes: B samples, L tokens of which F stay in front, N = L - F, D width, M layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.comparison.rules import share
from madtp.cost.trace import LayerTrace
from madtp.method.merged import Merged, Schedule


class Guided(Merged):
    """As `Merged`, with guides.

    Args:
        schedule: how many tokens go where.
        guides: [M, D], the vectors w.
        sizes: [B, L].
        places: [B, N of the first layer].
    """

    def __init__(self, schedule: Schedule, guides: Tensor, sizes: Tensor | None = None, places: Tensor | None = None):
        super().__init__(schedule, sizes, places)
        self.guides = guides

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        front = self.schedule.prefix
        sizes = None if self.sizes_of_tokens is None else self.sizes_of_tokens[:, front:]
        text = foretold(x[:, front:], self.guides[self.schedule.layer], sizes).softmax(dim=1)
        scores = scores._replace(cls_attention=(share(scores.cls_attention) + text) / 2)
        x, after, kept = super().prune(x, scores, alignment, temperature, min_keep, protected)
        return x, Guided(after.schedule, self.guides, after.sizes_of_tokens, after.places), kept

    def with_sizes(self, sizes: Tensor | None) -> "Guided":
        return Guided(self.schedule, self.guides, sizes)


def foretold(x: Tensor, guide: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Logits [B, N] of the text's attention to tokens x [B, N, D] of so many patches each [B, N]; None is one each."""
    with torch.autocast(x.device.type, enabled=False):
        logits = F.layer_norm(x.float(), x.shape[-1:]) @ guide / x.shape[-1] ** 0.5
        return logits if sizes is None else logits + sizes.log()


class Foretelling:
    """What the guides cost, counted as `Merger.cost` counts."""

    @staticmethod
    def cost(layer: LayerTrace, width: int, head_width: int) -> float:
        """Multiply-accumulates in a layer."""
        return (layer.entered - 1) * width if layer.left < layer.entered else 0.0
