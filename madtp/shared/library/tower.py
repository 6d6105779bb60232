"""A tower of somebody else's model, and the forward that takes the place of its own.

Shapes: B batch, L tokens, F of them in front that always stay, N = L - F that are merged, D width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from madtp.cost.flops import TowerShape
from madtp.method.errors import UserError
from madtp.method.layout import Sequences
from madtp.method.merged import Merged, Schedule
from madtp.method.rows import take
from madtp.shared.layers import Guidance, run_layers
from madtp.shared.library.layer import Layer, Names
from madtp.shared.library.replacement import IMAGE, Replacement

MASK = "attention_mask"
UNMET = ("attn_mask", "causal_attention_mask", "head_mask", "rope")
UNHEARD = ("output_hidden_states", "output_attentions", "is_causal")


@dataclass
class Tower:
    """What there is to know of a tower to prune it.

    Attributes:
        entry: the module whose forward runs the layers, given the tokens; or the first layer, if no module does.
        blocks: the layers, in what holds them.
        names: of their parts.
        embedding: the convolution that makes tokens of patches, or the table that makes them of words.
        prefix: F.
        class_token: whether the first token is a class token.
        last: whether the token that is read, and always stays, comes last instead.
        name: IMAGE or TEXT.
        wrap: what to make of the tokens that go out; the tokens alone if not given.
        sequence_first: whether tokens come as [L, B, D].
        shortened: whether what reads the tower reads merged tokens: [B, L', D + 1] goes out, the logarithm of a token's
            size in the last channel. Else each patch gets back a token, the one that it was merged into.
        flag: the attribute of `entry` that asks for memory to be saved by recomputing every layer.
        recompute: whether that is asked for in another way.
        config: of the model, which may ask for what a pruned tower does not give.
        layers: the blocks by the names of their parts.
    """

    entry: nn.Module
    blocks: nn.Sequential | nn.ModuleList
    names: Names
    embedding: nn.Conv2d | nn.Embedding
    prefix: int
    class_token: bool
    last: bool = False
    name: str = IMAGE
    wrap: Callable[[Tensor], Any] | None = None
    sequence_first: bool = False
    shortened: bool = False
    flag: str = "gradient_checkpointing"
    recompute: bool = False
    config: Any = None
    layers: list[Layer] = field(init=False)

    def __post_init__(self):
        self.layers = [Layer(block, self.names) for block in self.blocks]

    @property
    def passed(self) -> list[nn.Module]:
        """The layers but the first, where the first one's forward does their work."""
        return [layer.block for layer in self.layers[1:]] if self.entry is self.layers[0].block else []

    def refuse_other_layers(self) -> None:
        """Raises a UserError where layers were exchanged or taken away: those that were there would go on to be run."""
        if [layer.block for layer in self.layers] != list(self.blocks):
            raise UserError("the layers of this pruned tower are no longer those that were pruned: madtp.prune it anew")

    @property
    def shape(self) -> TowerShape:
        """What decides its cost; a word costs nothing to look up."""
        weight, drawn = self.embedding.weight, isinstance(self.embedding, nn.Conv2d)
        width = weight.shape[0 if drawn else 1]
        cost = weight.numel() if drawn else 0
        return TowerShape(width, self.layers[0].hidden(width), cost, self.prefix, self.class_token)

    def schedule(self, length: int, shape: float, keep_norm: bool = False) -> Schedule:
        """How many tokens go where, of L that enter."""
        return Schedule(len(self.layers), shape, length - self.prefix, 0, self.prefix, self.class_token, keep_norm)


class Pruned(Replacement):
    """The forward of a tower that prunes by coverage.

    Args:
        of: the tower.
        amount: how much goes; 0 is the dense tower.
        shape: when it goes; see `madtp.method.coverage.left_by`.
        keep_norm: whether a merged token is as long as what it stands for.

    Attributes:
        entered: tokens that entered the last time, None before.
    """

    def __init__(self, of: Tower, amount: float = 0.0, shape: float = 1.0, keep_norm: bool = False):
        self.of, self.tower, self.amount, self.shape, self.keep_norm = of, of.name, amount, shape, keep_norm
        self.entered: int | None = None
        self.names = tuple(signature(type(of.entry).forward).parameters)[1:]  # in the order of this version

    def __call__(self, *given: Any, **named: Any) -> Any:
        x, seen = self.tokens(given, named)
        self.entered = int(x.shape[1])
        (x, layout), place = self.run(x, seen)
        if self.of.shortened:
            sizes = x.new_zeros(x.shape[:2]) if layout.log_sizes is None else layout.log_sizes.to(x.dtype)
            x = torch.cat([x, sizes.unsqueeze(2)], dim=2)
        elif place is not None:
            x = spread(x, place, self.of.prefix)
        x = x.roll(-1, dims=1) if self.of.last else x
        x = x.transpose(0, 1) if self.of.sequence_first else x
        return x if self.of.wrap is None else self.of.wrap(x)

    def tokens(self, given: tuple, named: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The tokens that enter, [B, L, D], and which of them may be seen, [B, L], from all that a caller gives.

        Raises:
            UserError: the caller asks for what pruning does not know how to do.
        """
        self.of.refuse_other_layers()
        named = {**named, **dict(zip(self.names, given, strict=False))}
        for name in UNMET:
            if _given(named.get(name)):
                raise UserError(f"a pruned tower takes no {name}: give none, or madtp.restore(model)")
        for name in UNHEARD:
            if named.get(name) or getattr(self.of.config, name, False):
                raise UserError(f"a pruned tower has no {name}: ask for none, or madtp.restore(model)")
        if any(layer.hooked for layer in self.of.layers):
            raise UserError("a pruned tower calls no layer, only its parts: hook these, or madtp.restore(model)")
        x = named[self.names[0]].transpose(0, 1) if self.of.sequence_first else named[self.names[0]]
        seen = seen_by_all(named.get(MASK))
        if self.of.last:
            x, seen = x.roll(1, dims=1), None if seen is None else seen.roll(1, dims=1)
        return x, seen

    def run(self, x: Tensor, seen: Tensor | None = None) -> tuple[Sequences, Tensor | None]:
        """The tokens that are left of x [B, L, D], and which of them every patch is part of, [B, N]."""
        layers = self.of.layers
        schedule = self.of.schedule(int(x.shape[1]), self.shape, self.keep_norm)
        sequences = Sequences(x, Merged.of(schedule, x, seen))
        flags = (getattr(module, self.of.flag, False) for module in (self.of.entry, layers[0].block))
        recomputed = len(layers) * (self.of.recompute or any(flags))
        passed = run_layers(layers, sequences, Guidance(temperature=self.amount), self.tower, None, recomputed)
        return passed.sequences, passed.sequences.layout.places


class HandOn(Replacement):
    """The forward of a layer whose work was done before: what enters leaves.

    Args:
        of: the tower.
    """

    def __init__(self, of: Tower):
        self.of = of

    def __call__(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        self.of.refuse_other_layers()
        return x


def _given(value: Any) -> bool:
    """Whether an input says something; some libraries give a list of nothing, one for every layer."""
    return any(map(_given, value)) if isinstance(value, list | tuple) else value is not None


def seen_by_all(mask: Tensor | None) -> Tensor | None:
    """Which tokens a mask lets be seen, [B, L].

    Args:
        mask: [B, L], or [B, 1, Q, L], boolean or to be added to logits.

    Raises:
        UserError: it hides from one token what it shows to another.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise UserError("a pruned tower takes masks [B, L] and [B, 1, Q, L]: give none, or madtp.restore(model)")
    if mask.dim() == 2:
        return mask.bool()
    seen = mask if mask.dtype == torch.bool else mask >= 0
    if not torch.compiler.is_compiling() and (seen != seen[:, :1, :1]).any():
        raise UserError("a pruned tower takes a mask only if all tokens see the same: madtp.restore(model) first")
    return seen[:, 0, 0]


def spread(x: Tensor, place: Tensor, prefix: int) -> Tensor:
    """Every patch gets the token that it is part of: [B, F + n, D] -> [B, F + N, D].

    Args:
        x: [B, F + n, D].
        place: [B, N].
        prefix: F.
    """
    front = torch.arange(prefix, device=place.device).expand(x.shape[0], -1)
    return take(x, torch.cat([front, place + prefix], dim=1))
