"""What an adapter says of a model."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from madtp.shared.library.replacement import Place
from madtp.shared.library.tower import Tower


@dataclass
class Adapted:
    """A model as the rest of this package sees it.

    Attributes:
        tower: the one that is pruned.
        answer: what the model makes of images [B, 3, H, W] or words [B, L]: [B, any], numbers of which a squared
            distance tells how far it moved, as features of length 1 or probabilities.
        others: what else must know of merged tokens, or may not be asked for.
    """

    tower: Tower
    answer: Callable[[Tensor], Tensor]
    others: list[Place] = field(default_factory=list)


def name_of(module: nn.Module) -> str:
    """Its class and the last part of where that was defined, as "vision_transformer.Block"."""
    kind = type(module)
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def unit(features: Tensor) -> Tensor:
    """Features [B, ...] of length 1: [B, any]."""
    return F.normalize(features.flatten(1).float(), dim=-1)


def decided(logits: Tensor) -> Tensor:
    """Probabilities of classes [B, C]; of a single one, whose share is always 1, the number itself."""
    return logits.float().softmax(dim=-1) if logits.shape[-1] > 1 else logits.float()
