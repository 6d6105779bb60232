"""Linear layers as inference wants them: weights cast once, and kept as the processor's library likes them.

Without gradients autocast casts every weight again in every forward pass, and a product of matrices packs it again.
Here both happen once, when a layer is first used. On CPUs the bias and a GELU behind it become part of the product.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKED = 2**19  # entries of a float32 weight from which packing pays; halves always gain
ROWS = 1024  # of the products that weights are packed for, which serve others as well
ACTIVATIONS = {"fc1": "act", "c_fc": "gelu", "dense": "activation"}  # linear layer -> what alone takes its output

Undo = Callable[[], None]


@contextmanager
def prepared(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The model with linear layers made for inference.

    Its parameters stay where and what they are, and must not change while this lasts.

    Args:
        model: on its device.
        dtype: of mixed precision, float32 for none.
    """
    undo = prepare(model, dtype)
    try:
        yield model
    finally:
        undo()


def prepare(model: nn.Module, dtype: torch.dtype) -> Undo:
    """As `prepared`, until what this returns is called, which frees the copies too."""
    changed = [pair for parent in model.modules() for pair in _replacements(parent, dtype)]
    for module, method, replacement in changed:
        setattr(module, method, replacement)

    def undo() -> None:
        for module, method, _ in changed:
            delattr(module, method)
        changed.clear()

    return undo


class CastLinear:
    """A linear layer's forward pass with a copy of its parameters in another type.

    Args:
        weight: [out, in].
        bias: [out] or None.
        dtype: of inputs, output and copy.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        self.dtype, self._weight, self._bias = dtype, weight.detach(), None if bias is None else bias.detach()

    @cached_property
    def weight(self) -> Tensor:
        """The copy, made when it is first needed: towers that only training uses never are."""
        return self._weight.to(self.dtype)

    @cached_property
    def bias(self) -> Tensor | None:
        """Its bias."""
        return None if self._bias is None else self._bias.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), self.weight, self.bias)


class PackedLinear(CastLinear):
    """The same on a CPU, with packed weights.

    Args:
        gelu: whether GELU is part of it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: bool):
        super().__init__(weight, bias, dtype)
        self.activation = ("gelu", [], "none") if gelu else ("none", [], "")

    @cached_property
    def weight(self) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self._weight.to(self.dtype), ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, *self.activation)


def _replacements(parent: nn.Module, dtype: torch.dtype) -> Iterator[tuple[nn.Module, str, Callable]]:
    """What stands in for methods of a module and of its children: module, method, and what takes its place."""
    if hasattr(parent, "in_proj"):  # CLIP's attention, a linear layer itself
        yield from _replacement(parent, "in_proj", parent.in_proj_weight, parent.in_proj_bias, dtype)
    for name, layer in parent.named_children():
        if type(layer) is nn.Linear:
            activation = getattr(parent, ACTIVATIONS.get(name, ""), None)
            yield from _replacement(layer, "forward", layer.weight, layer.bias, dtype, activation)


def _replacement(
    owner: nn.Module,
    method: str,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    activation: nn.Module | None = None,
) -> Iterator[tuple[nn.Module, str, Callable]]:
    """What stands in for a method that is a linear layer, if it gains, and for the activation that takes its output."""
    if method in vars(owner) or weight.dtype != torch.float32:
        return
    if _packs(weight, dtype):
        gelu = type(activation) is nn.GELU and activation.approximate == "none"
        yield owner, method, PackedLinear(weight, bias, dtype, gelu)
        if gelu:
            yield activation, "forward", _as_it_is
    elif dtype != torch.float32:
        yield owner, method, CastLinear(weight, bias, dtype)


def _as_it_is(x: Tensor) -> Tensor:
    """What is left of an activation that the product before it has done already."""
    return x


def _packs(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether packing a weight is possible and pays."""
    pays = dtype != torch.float32 or weight.numel() >= PACKED
    return weight.device.type == "cpu" and pays and _library_packs(dtype)


@cache
def _library_packs(dtype: torch.dtype) -> bool:
    """Whether PyTorch's library for CPUs is there, takes this type, and is right about an example."""
    x, weight, bias = torch.linspace(-1, 1, 160).view(5, 32), torch.linspace(1, -1, 1536).view(48, 32), torch.ones(48)
    with torch.autocast("cpu", enabled=False):
        try:
            found = PackedLinear(weight, bias, dtype, gelu=True)(x).float()
        except Exception:  # there is no telling what another version or another processor raises
            return False
        return torch.allclose(found, F.gelu(F.linear(x, weight, bias)), rtol=0.05, atol=0.05)
