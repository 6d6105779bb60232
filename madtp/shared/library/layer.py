"""A transformer layer that norms first, made of the parts of somebody else's.

Shapes: B batch, L tokens, D width, H heads, E width of a head.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.method.layout import Rectangle
from madtp.method.pruning import Kept
from madtp.shared.layers import Guidance


@dataclass(frozen=True)
class Names:
    """Where the parts of a layer are, in names like "attn.proj"; with "?" behind those that not every layer has.

    Attributes:
        norm: before attention.
        query_key_value: the linear layer that makes all three, or the three that make one each, or torch's own
            attention, which holds the weights itself.
        heads: their number H.
        output: what follows attention up to the sum, in this order. A parameter multiplies.
        second_norm: before the feed-forward part.
        feed_forward: what follows it up to the sum.
        query_key_norm: norms of the queries and of the keys.
        biases: of queries, keys and values, where the linear layer has none itself.
        dropout: the share of attention weights that training drops, or the module that does.
    """

    norm: str
    query_key_value: tuple[str, ...]
    heads: str
    output: tuple[str, ...]
    second_norm: str
    feed_forward: tuple[str, ...]
    query_key_norm: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    dropout: str = "?"

    def fit(self, block: nn.Module) -> bool:
        """Whether a layer has all parts that it must have."""
        names = (self.norm, *self.query_key_value, self.heads, *self.output, self.second_norm, *self.feed_forward)
        return all(part(block, name) is not None for name in names if not name.endswith("?"))


def part(block: nn.Module, name: str) -> Any:
    """A part of a layer by its name, None where there is none."""
    return reduce(lambda found, step: getattr(found, step, None), name.removesuffix("?").split("."), block)


class Layer:
    """Attend, prune, feed forward.

    Parts are looked up whenever they are needed, so that whoever exchanges one of them is heard.

    Args:
        block: the layer.
        names: of its parts.
    """

    def __init__(self, block: nn.Module, names: Names):
        self.block, self.names = block, names

    @property
    def training(self) -> bool:
        """Whether the layer is being trained."""
        return self.block.training

    @property
    def hooked(self) -> bool:
        """Whether somebody waits for the layer to be called; transformers waits for what is refused elsewhere."""
        hooks = [*self.block._forward_hooks.values(), *self.block._forward_pre_hooks.values()]
        hooks += self.block._backward_hooks.values()
        return any(not str(getattr(hook, "__module__", "")).startswith(("transformers.", "madtp.")) for hook in hooks)

    def __call__(self, x: Tensor, layout: Rectangle, guidance: Guidance) -> tuple[Tensor, Rectangle, None, Kept | None]:
        query, key, value = self._heads(self._through(x, self.names.norm))  # [B, H, L, E]
        dropout = self._dropout() if self.training else 0.0
        attended, scores = layout.attend(query, key, value, scores=guidance.prunes, dropout=dropout)
        attended = self._through(attended.transpose(1, 2).flatten(2), *self.names.output)
        x, layout, kept = layout.prune(x + attended, scores, None, guidance.temperature)
        return x + self._through(x, self.names.second_norm, *self.names.feed_forward), layout, None, kept

    def _through(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            step = part(self.block, name)
            if isinstance(step, nn.Module):
                x = step(x)
            elif step is not None:
                x = x * step
        return x

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projections = [part(self.block, name) for name in self.names.query_key_value]
        projected = torch.cat([self._project(projection, x) for projection in projections], dim=-1)
        heads = projected.unflatten(-1, (3, part(self.block, self.names.heads), -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        if self.names.query_key_norm:
            query, key = (
                self._through(heads, name) for heads, name in zip((query, key), self.names.query_key_norm, strict=True)
            )
        return query, key, value

    def _project(self, projection: nn.Module, x: Tensor) -> Tensor:
        if isinstance(projection, nn.MultiheadAttention):
            return F.linear(x, projection.in_proj_weight, projection.in_proj_bias)
        biases = [part(self.block, name) for name in self.names.biases]
        return projection(x) + torch.cat(biases) if biases and biases[0] is not None else projection(x)

    def _dropout(self) -> float:
        dropout = part(self.block, self.names.dropout)
        return dropout.p if isinstance(dropout, nn.Module) else dropout or 0.0

    def hidden(self, width: int) -> float:
        """Width of the feed-forward part, if it were two matrices of as many weights as it has."""
        parts = (part(self.block, name) for name in self.names.feed_forward)
        steps = [step for module in parts if isinstance(module, nn.Module) for step in module.modules()]
        linear = [step for step in steps if hasattr(step, "out_features")]  # whose weights may be packed
        whole = [step for step in linear if not any(child in linear for child in step.children())]
        return sum(step.in_features * step.out_features for step in whole) / (2 * width)
