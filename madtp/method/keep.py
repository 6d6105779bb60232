"""The two rules by which a layer keeps tokens.

The released one, `batch`, keeps in every sample as many tokens as the neediest one of the batch needs, so that a batch
stays a rectangle: cost and answer of a sample depend on its company. Under `sample` each keeps what passes its own
threshold, and gets the same answer in any company. Its sequences then differ in length: for training they stand in a
rectangle with a mask, for inference they are packed.

A rule is what a tower calls on the tokens that enter it; the layout that they get prunes as the rule says.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from madtp.method.layout import RECTANGLE, Masked, Sequences
from madtp.method.packed import Packed


def keep_batch(x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
    """The rule `batch`: x [B, L, D] as it is, padding of texts included."""
    return Sequences(x, RECTANGLE)


def keep_sample(x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
    """The rule `sample`: x [B, L, D] with a mask where gradients or aligned features are wanted, packed otherwise.

    Args:
        x: class token first.
        own: [B, L], True where there is a token, on the left of each row; None is everywhere.
        align: whether the aligned feature of the similarity loss is wanted.
        together: how many sequences, B / together apart, belong to one sample and keep equally many tokens.
    """
    if align or torch.is_grad_enabled():
        return Sequences(x, Masked(torch.ones_like(x[..., 0], dtype=torch.bool) if own is None else own, together))
    return Packed.of(x, own, together)


Keep = Callable[..., Sequences]
KEEP: dict[str, Keep] = {"batch": keep_batch, "sample": keep_sample}
