"""Multi-modality alignment guidance (MAG): learnable tokens that both modalities are held against.

Shapes: B batch, N prunable tokens, D width of the tower, K learnable tokens, C their width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from madtp.method.layout import Rectangle
from madtp.method.precision import at_least_single
from madtp.method.transforms import is_transformed


class QueryModel(nn.Module):
    """Holds the tokens that enter a layer against the learnable tokens.

    Args:
        width: D, width of the tower.
        sd_dim: C, width of the learnable tokens.
        always_map: keep the linear map to C even where D = C already (CLIP).
    """

    def __init__(self, width: int, sd_dim: int, always_map: bool = False):
        super().__init__()
        mapped = always_map or width != sd_dim
        self.q_map = nn.Sequential(nn.Linear(width, sd_dim)) if mapped else nn.Identity()

    def forward(
        self, x: Tensor, layout: Rectangle, space_dict: Tensor | None, temperature: float, align: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Alignment scores for pruning and the aligned feature for the similarity loss, each only where it is used.

        Args:
            x: [B, L, D], what enters the layer, class token first.
            layout: how its tokens lie.
            space_dict: [K, C], the learnable tokens; None switches MAG off.
            temperature: pruning temperature; above 0 the alignment is needed, unless the layout does without.
            align: whether the aligned feature is wanted.

        Returns:
            alignment a = q E^T [B, N, K] and aligned feature [B, K, C], either may be None.
        """
        if space_dict is None or not (align or temperature > 0 and layout.guided):
            return None, None
        query = self.q_map(layout.prunable(x))
        learnable = space_dict.to(query.dtype).transpose(0, 1).expand(len(query), -1, -1)
        alignment = _product(query, learnable)  # batched: a flat one would copy the tokens, and keep them to train
        if not align:
            return alignment, None
        own, log_sizes = (None if values is None else values[:, 1:] for values in (layout.own, layout.log_sizes))
        return alignment, aligned_feature(query, alignment, own, log_sizes)


def aligned_feature(
    query: Tensor, alignment: Tensor, own: Tensor | None = None, log_sizes: Tensor | None = None
) -> Tensor:
    """Each learnable token's view of the modality: softmax over N of (a^T / sqrt(C)), times q.

    Args:
        query: [B, N, C].
        alignment: [B, N, K].
        own: [B, N], True where there is a token; None is everywhere.
        log_sizes: [B, N], logarithm of how many patches a token stands for; None counts each once.

    Returns:
        [B, K, C].
    """
    logits = alignment.transpose(1, 2) / query.shape[-1] ** 0.5
    if log_sizes is not None:
        logits = logits + log_sizes.unsqueeze(1)
    if own is not None:
        logits = logits.masked_fill(~own.unsqueeze(1), float("-inf"))
    weights = logits.softmax(dim=-1)
    return _product(weights, query)


def similarity_loss(image: Tensor, text: Tensor) -> Tensor:
    """L_sim: mean over B and K of 1 - cos(image, text) of the aligned features, each [B, K, C]."""
    image, text = (F.normalize(at_least_single(feature), dim=-1, eps=1e-10) for feature in (image, text))
    return (1 - (image * text).sum(dim=-1)).mean()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Of batches of matrices, in the type of the right ones or, in mixed precision, in that."""
    device = left.device.type
    if torch.is_grad_enabled() and torch.is_autocast_enabled(device) and not is_transformed():
        return _CastProduct.apply(left, right, torch.get_autocast_dtype(device))
    return torch.bmm(left.to(right.dtype), right)


class _CastProduct(torch.autograd.Function):
    """A product in another type, to which the backward pass casts again: training keeps both sides as they came."""

    @staticmethod
    def forward(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
        return left.to(dtype) @ right.to(dtype)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        left, right = ctx.saved_tensors
        grad_left = grad @ right.to(grad.dtype).transpose(1, 2)
        grad_right = left.to(grad.dtype).transpose(1, 2) @ grad
        return grad_left.to(left.dtype), grad_right.to(right.dtype), None
