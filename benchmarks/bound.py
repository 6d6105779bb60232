"""What a machine's matrix products alone would need for a forward pass or a training step: the bound of its time.

A call is listened to once. Its matrix products are then made again by themselves, on tensors of the same shapes,
strides and types; attention is counted at the best rate that any of them reaches, whatever its own shapes allow.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import timed
from madtp.method import compiled
from madtp.shared.inference import PackedLinear

aten = torch.ops.aten
PRODUCTS = {aten.mm.default: (0, 1), aten.addmm.default: (1, 2)}  # where the two matrices are
BATCHED = {aten.bmm.default: (0, 1), aten.baddbmm.default: (1, 2)}
REPEATS = 3


class Operand(NamedTuple):
    """A matrix as it lies in memory; one that is packed for a linear layer has no strides."""

    shape: torch.Size
    stride: tuple[int, ...] | None
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> "Operand":
        """That of a tensor."""
        return cls(x.shape, x.stride(), x.dtype, x.device)

    def make(self) -> Tensor | PackedLinear:
        """Noise that lies so."""
        if self.stride is None:
            return PackedLinear(torch.rand(self.shape).t() - 0.5, None, self.dtype, gelu=False)
        empty = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return empty.copy_(torch.rand(self.shape, device=self.device) - 0.5)


class Listener(TorchDispatchMode):
    """Writes down the matrix products within it.

    Attributes:
        products: (left, right) -> how often.
        attention: floating-point operations of attention and of whatever else is multiplied batch by batch.
    """

    def __init__(self):
        super().__init__()
        self.products: Counter[tuple[Operand, Operand]] = Counter()
        self.attention = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            left, right = (args[place] for place in PRODUCTS[function])
            self.products[Operand.of(left), Operand.of(right)] += 1
        elif function in BATCHED:
            left, right = (args[place] for place in BATCHED[function])
            self.attention += 2.0 * left.numel() * right.shape[-1]
        elif "_linear_pointwise" in str(function):
            x, weight = args[:2]
            features, taps = weight.shape
            left = Operand(torch.Size((x.numel() // taps, taps)), (taps, 1), x.dtype, x.device)
            self.products[left, Operand(torch.Size((taps, features)), None, x.dtype, x.device)] += 1
        elif function is aten.convolution.default:
            self.products[unfolded(args[0], args[1])] += 1
        elif function is aten.convolution_backward.default:  # that of a kernel; no image needs a gradient
            left, right = unfolded(args[1], args[2])
            rows, features = left.shape[0], right.shape[1]
            self.products[left._replace(shape=torch.Size((features, rows)), stride=(1, features)), left] += 1
        elif "scaled_dot_product" in str(function):
            backward = "backward" in str(function)  # two products before, five after
            query, key, value = args[backward : backward + 3]
            one = 2.0 * query.numel() * key.shape[-2]
            self.attention += one * (5 if backward else 1 + value.shape[-1] / query.shape[-1])
        else:
            with self:
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return function(*args, **(kwargs or {}))


def unfolded(image: Tensor, kernel: Tensor) -> tuple[Operand, Operand]:
    """The matrix product that a convolution by patches is: [B * N, C * P * P] by [C * P * P, D]."""
    features, taps = kernel.shape[0], kernel[0].numel()
    rows = image.numel() // taps
    left = Operand(torch.Size((rows, taps)), (taps, 1), kernel.dtype, kernel.device)
    return left, Operand(torch.Size((taps, features)), (1, taps), kernel.dtype, kernel.device)


class Bound:
    """The matrix products of a call, to be made by themselves.

    Args:
        work: the call.
        device: where it runs.
    """

    def __init__(self, work: Callable[[], None], device: str):
        with patch.object(compiled, "library", lambda: None), Listener() as heard:  # what is made in C cannot be heard
            work()
        self.device, self.attention = device, heard.attention
        matrices = {one: one.make() for pair in heard.products for one in pair}
        self.products = [(matrices[left], matrices[right], times) for (left, right), times in heard.products.items()]

    @torch.no_grad()
    def __call__(self) -> None:
        """Makes them all, each as often as the call did."""
        for left, right, times in self.products:
            for _ in range(times):
                multiply(left, right)

    def flops(self) -> float:
        """Floating-point operations of these products."""
        return sum(operations(left, right) * times for left, right, times in self.products)

    def best_rate(self) -> float:
        """Floating-point operations a second of the product that the machine does best, among the five largest."""
        largest = sorted(self.products, key=lambda product: -operations(*product[:2]))[:5]
        rates = []
        for left, right, _ in largest:
            seconds = [timed(lambda: multiply(left, right), self.device)[1] for _ in range(REPEATS)]  # noqa: B023
            rates.append(operations(left, right) / min(seconds))
        return max(rates)

    def seconds(self, products: list[float]) -> list[float]:
        """The bound of each round, from the seconds that the products took in it."""
        rate = self.best_rate() if self.attention else 1.0
        return [own + self.attention / rate for own in products]


def multiply(left: Tensor, right: Tensor | PackedLinear) -> Tensor:
    """The product of two matrices."""
    return right(left) if isinstance(right, PackedLinear) else torch.mm(left, right)


def operations(left: Tensor, right: Tensor | PackedLinear) -> float:
    """Its floating-point operations."""
    features = right.weight.shape[0] if isinstance(right, PackedLinear) else right.shape[1]
    return 2.0 * left.numel() * features
