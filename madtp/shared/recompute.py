"""Memory for time in training: what is cheap to make again is not kept for the backward pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def through(x: Tensor, *steps: Callable[[Tensor], Tensor]) -> Tensor:
    """x through some steps in turn, of which the backward pass makes all but the last anew from x.

    For a norm or an activation and the linear layer behind it: the layer's input is not kept, and its product, which is
    what costs time, is not repeated, since nothing needs it. The steps draw no random numbers. In mixed precision their
    weights are cast anew as well, so that no copies of them wait for the backward pass either.
    """

    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    if not torch.is_grad_enabled():
        return run(x)
    with _copies_forgotten(x.device.type):  # in the backward pass too, which is as the forward pass was
        return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)


def _copies_forgotten(device: str) -> AbstractContextManager:
    """Where autocast does not keep the weights that it casts until the end of the forward pass."""
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)
