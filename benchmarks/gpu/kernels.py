"""The attention kernels held to the block-wise path, both to double precision, on the device; and the gradients."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks.gpu.lines import GPU, Part
from madtp.method.attention_blocks import BlockwiseAttention

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = [(4, 12, 577, 64), (2, 3, 35, 32), (3, 2, 197, 96), (2, 16, 577, 128), (2, 2, 65, 64), (1, 4, 1025, 80)]
MASKS = ("none", "padding", "causal")
ALLOWED = 2.0  # times the error of the block-wise path in the same precision


def parts(device: str, small: bool) -> Iterator[Part]:
    """Shapes [B, H, L, E] by worth: the models' own first, then odd lengths and other widths."""
    shapes = [(2, 2, 35, 32)] if small else SHAPES
    for shape, (name, dtype) in product(shapes, DTYPES.items()):
        title = f"{name} {'x'.join(map(str, shape))}"
        yield Part(f"forward {title}", partial(forward, shape, dtype, device), (GPU, "triton"))
        yield Part(f"backward {title}", partial(backward, shape, dtype, device))


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Queries, keys and values out of one projection, as in a layer, and gradients of what comes out."""
    batch, heads, length, width = shape
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(batch, length, 3, heads, width, generator=generator).to(device, dtype)
    return list(projected.permute(2, 0, 3, 1, 4))


def masks(shape: tuple[int, ...], kind: str, device: str) -> tuple[Tensor | None, Tensor | None]:
    """What attention may see, and which queries count."""
    batch, _, length, _ = shape
    ends = torch.linspace(length // 2, length, batch, device=device).long()
    inside = torch.arange(length, device=device) < ends.unsqueeze(1)
    if kind == "none":
        return None, None
    if kind == "padding":
        return inside[:, None, None, :], inside
    return torch.ones(length, length, dtype=torch.bool, device=device).tril(), None


@torch.no_grad()
def forward(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[dict]:
    """Errors of output, sums and class row for every kind of mask."""
    from madtp.method.attention_kernel import attend_fused

    tensors = inputs(shape, dtype, device)
    for kind in MASKS:
        allowed = masks(shape, kind, device)
        exact = BlockwiseAttention.forward(*(x.double() for x in tensors), *allowed)
        kernel = errors(attend_fused(*tensors, *allowed), exact)
        blocks = errors(BlockwiseAttention.forward(*tensors, *allowed), exact)
        yield verdict(kind, "kernel", kernel, blocks)


def backward(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Iterator[dict]:
    """Errors of the gradients of queries, keys and values, against those of autograd through a whole map."""
    tensors = inputs(shape, dtype, device)
    for kind in MASKS:
        allowed = masks(shape, kind, device)
        exact = gradients(whole, [x.double() for x in tensors], *allowed)
        ours = errors(gradients(BlockwiseAttention.apply, tensors, *allowed), exact)
        plain = errors(gradients(whole, tensors, *allowed), exact)
        yield verdict(kind, "gradient", ours, plain)


def whole(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, counted: Tensor | None):
    """The same as `BlockwiseAttention`, written down from a whole map."""
    logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    weights = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=-1)
    largest = weights.amax(dim=1) if counted is None else weights.amax(dim=1) * counted.unsqueeze(-1)
    return weights @ value, largest[:, 1:].sum(dim=1), weights[:, :, 0]


def gradients(attended, tensors: list[Tensor], *allowed: Tensor | None) -> list[Tensor]:
    """Of a sum over all that comes out, each number weighed differently."""
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    results = attended(*tensors, *allowed)
    weighed = (x.double() * torch.linspace(-1, 1, x.numel(), device=x.device).view_as(x) for x in results)
    return torch.autograd.grad(sum(x.sum() for x in weighed), tensors)


def errors(found, exact) -> list[float]:
    """The largest difference of each result, over the largest of the exact one."""
    return [float((x.double() - y).abs().max() / y.abs().max()) for x, y in zip(found, exact, strict=True)]


def verdict(kind: str, what: str, ours: list[float], others: list[float]) -> dict:
    """Whether errors are at most `ALLOWED` times those that the precision itself makes."""
    agrees = all(one <= ALLOWED * max(other, 1e-3) for one, other in zip(ours, others, strict=True))
    return {"mask": kind, "of": what, "error": max(ours), "error_of_reference": max(others), "agrees": agrees}
