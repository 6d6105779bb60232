"""The rules by which a layer keeps tokens.

The released one, `batch`, keeps in every sample as many tokens as the neediest one of the batch needs, so that a batch
stays a rectangle: cost and answer of a sample depend on its company. Under `sample` each keeps what passes its own
threshold, and gets the same answer in any company. Its sequences then differ in length: for training they stand in a
rectangle with a mask, for inference they are packed.

The third, `coverage`, is not the paper's: every token that goes is merged into the one it resembles most of those that
stay, which are chosen so that none is far from them; see `madtp.method.coverage`. It knows its number of tokens
beforehand, the same for every sample, and leaves texts whole.

A rule is what a tower calls on the tokens that enter it; the layout that they get prunes as the rule says.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from madtp.method.errors import UserError, excerpt
from madtp.method.layout import ALONE, RECTANGLE, Masked, Sequences
from madtp.method.merged import Merged, Schedule
from madtp.method.packed import Packed
from madtp.method.rules import BATCH, COVERAGE, RULES, SAMPLE


def keep_batch(x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
    """The rule `batch`: x [B, L, D] as it is, padding of texts included."""
    return Sequences(x, RECTANGLE)


def keep_sample(x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
    """The rule `sample`: x [B, L, D] with a mask where gradients or aligned features are wanted, packed otherwise.

    One sample alone needs no packing: the rule `batch` keeps the same of it, and takes fewer steps.

    Args:
        x: class token first.
        own: [B, L], True where there is a token, on the left of each row; None is everywhere.
        align: whether the aligned feature of the similarity loss is wanted.
        together: how many sequences, B / together apart, belong to one sample and keep equally many tokens.
    """
    if align or torch.is_grad_enabled():
        return Sequences(x, Masked(torch.ones_like(x[..., 0], dtype=torch.bool) if own is None else own, together))
    if len(x) <= together and (own is None or own.all()):
        return Sequences(x, ALONE)
    return Packed.of(x, own, together)


@dataclass(frozen=True)
class Coverage:
    """The rule `coverage`; its amount takes the place of the temperature.

    Attributes:
        depth: layers of the image tower.
        shape: of the schedule; see `madtp.method.coverage.left_by`.
        keep_norm: whether a merged token is as long as what it stands for.
    """

    depth: int
    shape: float = 1.0
    keep_norm: bool = False
    texts = False

    def __call__(self, x: Tensor, own: Tensor | None = None, align: bool = False, together: int = 1) -> Sequences:
        """x [B, L, D] with sizes of one patch each; without a mask, since pictures have no padding."""
        return Sequences(x, Merged(self.schedule(x.shape[1] - 1)))

    def schedule(self, tokens: int) -> Schedule:
        """How many of so many patches every layer leaves."""
        return Schedule(self.depth, self.shape, tokens, keep_norm=self.keep_norm)


Keep = Callable[..., Sequences]
KEEP: dict[str, Keep] = {BATCH: keep_batch, SAMPLE: keep_sample}


def rule_of(config: dict, depth: int) -> Keep:
    """The rule that a configuration names by `keep`, with `shape` and `keep_norm`, for an image tower of some depth.

    Raises:
        UserError: there is no rule of this name.
    """
    name = config.get("keep", BATCH)
    if name not in RULES:
        raise UserError(f"keep is {excerpt(name)}, expected one of {', '.join(RULES)}")
    if name != COVERAGE:
        return KEEP[name]
    return Coverage(depth, config.get("shape") or 1.0, config.get("keep_norm", False))


def for_texts(keep: Keep, temperature: float) -> tuple[Keep, float]:
    """The rule and the temperature for a text: nothing goes by a rule that leaves texts whole."""
    return (keep, temperature) if getattr(keep, "texts", True) else (keep_batch, 0.0)
