"""Distillation: the tokens of a pruned image tower are to come near those of the dense one that it was.

A task's loss says little of a token; a dense tower says of every patch where it should be. A merged token stands for
several patches and is held against each of them, so that it comes to be what they have in common.

Shapes: B batch, N patches, n tokens left beside the class token, D width.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.method.layout import Sequences
from madtp.method.rows import take


class Teacher:
    """An image tower that stays as it is, and never prunes.

    Args:
        tower: copied. Of images [B, 3, S, S] it returns tokens [B, 1 + N, D], class token first, or features [B, D],
            with an aligned feature, which nobody asks for here.
    """

    def __init__(self, tower: nn.Module):
        self.tower = deepcopy(tower).requires_grad_(False).eval()

    def distance(self, image: Tensor, left: Sequences | Tensor) -> Tensor:
        """How far a pruned tower is from what this one makes of the same images: a scalar, the mean of 1 - cos.

        Class tokens and patches count half each. Where a rule drops patches, and no token is known to stand for them,
        the class tokens are all that is compared.

        Args:
            image: [B, 3, S, S].
            left: the tokens that the pruned tower left, or its features [B, D].
        """
        with torch.no_grad():
            dense, _ = self.tower(image, align=False)
        if isinstance(left, Tensor):
            return cosine_distance(left, dense)
        (tokens, layout), first = left, cosine_distance(left.first, dense[:, 0])
        if layout.places is None and (layout.own is not None or tokens.shape != dense.shape):
            return first
        patches = tokens[:, 1:] if layout.places is None else take(tokens[:, 1:], layout.places)
        return (first + cosine_distance(patches, dense[:, 1:])) / 2


def cosine_distance(x: Tensor, target: Tensor) -> Tensor:
    """The mean of 1 - cos over vectors [..., D], in single precision."""
    with torch.autocast(x.device.type, enabled=False):
        return 1 - F.cosine_similarity(x.float(), target.float(), dim=-1).mean()


def distillation_loss(teacher: Teacher | None, image: Tensor, left: Sequences | Tensor) -> dict[str, Tensor]:
    """`loss_distil`, where there is a teacher; see `Teacher.distance`."""
    return {} if teacher is None else {"loss_distil": teacher.distance(image, left)}
