"""A tower of somebody else's model, and the forward that takes the place of its own.

Shapes: B batch, L tokens, F of them in front that always stay, N = L - F patches, D width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from madtp.cost.flops import TowerShape
from madtp.cost.trace import Trace
from madtp.method import coverage
from madtp.method.errors import UserError
from madtp.method.layout import Sequences
from madtp.method.merged import Merged, Schedule
from madtp.method.rows import take
from madtp.shared.layers import Guidance, run_layers
from madtp.shared.library.layer import Layer

TOKENS = ("hidden_states", "inputs_embeds")  # what libraries call them where they do not come first
UNMET = ("attn_mask", "attention_mask", "causal_attention_mask", "head_mask", "rope")
UNHEARD = ("output_hidden_states", "output_attentions")


class Replacement:
    """A forward of one instance of a module; copied, saved and loaded along with it."""

    def install(self, module: nn.Module) -> None:
        """Takes the place of the module's own forward."""
        if "forward" in vars(module):
            raise UserError(f"the forward of {type(module).__name__} was replaced by somebody else: undo that first")
        module.forward = self


def replaced(model: nn.Module) -> Iterator[nn.Module]:
    """The modules whose forward is one of ours."""
    return (module for module in model.modules() if isinstance(vars(module).get("forward"), Replacement))


@dataclass
class Tower:
    """What there is to know of a tower to prune it.

    Attributes:
        entry: the module whose forward runs the layers, given the tokens; or the first layer, if no module does.
        layers: all of them.
        patches: the convolution that makes tokens of patches.
        prefix: F.
        class_token: whether the first token is a class token.
        passed: the layers but the first, where the first one's forward does their work.
        wrap: what to make of the tokens that go out; the tokens alone if not given.
        sequence_first: whether tokens come as [L, B, D].
        shortened: whether what reads the tower reads merged tokens: [B, L', D + 1] goes out, the logarithm of a token's
            size in the last channel. Else each patch gets back a token, the one that it was merged into.
        flag: the attribute of `entry` that asks for memory to be saved by recomputing every layer.
    """

    entry: nn.Module
    layers: list[Layer]
    patches: nn.Conv2d
    prefix: int
    class_token: bool
    passed: list[nn.Module] = field(default_factory=list)
    wrap: Callable[[Tensor], Any] | None = None
    sequence_first: bool = False
    shortened: bool = False
    flag: str = "gradient_checkpointing"

    @property
    def shape(self) -> TowerShape:
        """What decides its cost."""
        weight = self.patches.weight
        return TowerShape(
            len(weight), self.layers[0].hidden(len(weight)), weight.numel(), self.prefix, self.class_token
        )

    def schedule(self, length: int, shape: float) -> Schedule:
        """How many tokens go where, of L that enter."""
        return Schedule(len(self.layers), shape, length - self.prefix, 0, self.prefix, self.class_token)


class HandOn(Replacement):
    """The forward of a layer whose work was done before: what enters leaves."""

    def __call__(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        return x


class Pruned(Replacement):
    """The forward of a tower that prunes by coverage.

    Args:
        tower: the tower.
        amount: how much goes; 0 is the dense tower.
        shape: when it goes; see `madtp.method.coverage.left_by`.

    Attributes:
        entered: tokens that entered the last time, None before.
    """

    def __init__(self, tower: Tower, amount: float = 0.0, shape: float = 1.0):
        self.tower, self.amount, self.shape = tower, amount, shape
        self.entered: int | None = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        x = self.tokens(given, named)
        self.entered = x.shape[1]
        (x, layout), place = self.run(x)
        if self.tower.shortened:
            sizes = x.new_zeros(x.shape[:2]) if layout.log_sizes is None else layout.log_sizes.to(x.dtype)
            x = torch.cat([x, sizes.unsqueeze(2)], dim=2)
        elif place is not None:
            x = spread(x, place, self.tower.prefix)
        x = x.transpose(0, 1) if self.tower.sequence_first else x
        return x if self.tower.wrap is None else self.tower.wrap(x)

    def tokens(self, given: tuple, named: Mapping[str, Any]) -> Tensor:
        """The tokens that enter, [B, L, D], from all that a caller gives.

        Raises:
            UserError: the caller asks for what pruning does not know how to do.
        """
        unmet = [name for name in UNMET if _given(named.get(name))]
        unmet += ["further input"] * any(_given(value) and value is not False for value in given[1:])
        if unmet:
            raise UserError(f"a pruned tower takes no {unmet[0]}: give none, or madtp.restore(model)")
        unheard = [name for name in UNHEARD if named.get(name)]
        if unheard:
            raise UserError(f"a pruned tower has no {unheard[0]}: ask for none, or madtp.restore(model)")
        x = given[0] if given else next(named[name] for name in TOKENS if name in named)
        return x.transpose(0, 1) if self.tower.sequence_first else x

    def run(self, x: Tensor) -> tuple[Sequences, Tensor | None]:
        """The tokens that are left of x [B, L, D], and which of them every patch is part of, [B, N]."""
        layers, trace = self.tower.layers, Trace()
        sequences = Sequences(x, Merged(self.tower.schedule(x.shape[1], self.shape)))
        flags = (getattr(module, self.tower.flag, False) for module in (self.tower.entry, layers[0].block))
        guidance = Guidance(temperature=self.amount)
        passed = run_layers(layers, sequences, guidance, "image", trace, len(layers) * any(flags))
        merged = [layer.kept.groups for layer in trace.layers["image"] if layer.kept is not None]
        return passed.sequences, coverage.places(merged)


def _given(value: Any) -> bool:
    """Whether an input says something; some libraries give a list of nothing, one for every layer."""
    return any(map(_given, value)) if isinstance(value, list | tuple) else value is not None


def spread(x: Tensor, place: Tensor, prefix: int) -> Tensor:
    """Every patch gets the token that it is part of: [B, F + n, D] -> [B, F + N, D].

    Args:
        x: [B, F + n, D].
        place: [B, N].
        prefix: F.
    """
    front = torch.arange(prefix, device=place.device).expand(len(x), -1)
    return take(x, torch.cat([front, place + prefix], dim=1))
