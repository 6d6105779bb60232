"""What a rule's own work costs, beside that of the layers."""

import numpy as np

from benchmarks.comparison.merging import Merger
from madtp.cost.trace import Trace
from models.vit import VisionTransformer


def charged(trace: Trace, guided: tuple[str, ...]) -> Trace:
    """The trace where only some towers pay for scores and alignment."""
    return Trace(
        {
            tower: rows if tower in guided else [row._replace(scored=False) for row in rows]
            for tower, rows in trace.layers.items()
        }
    )


def overhead(trace: Trace, rule: Merger, tower: VisionTransformer) -> float:
    """Multiply-accumulates of a rule of merging in the image tower."""
    heads = tower.blocks[0].attn.num_heads
    rows = trace.layers["image"]
    return float(np.sum([rule.cost(row, tower.embed_dim, tower.embed_dim // heads) for row in rows]))
