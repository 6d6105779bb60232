"""Sums and norms in at least single precision: halves lose them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_AS_IT_IS = nullcontext()


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Half-precision sums are kept in float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def at_least_single(x: Tensor) -> Tensor:
    """Half precision as single."""
    return x.to(accumulator(x.dtype))


def exact(device: str) -> AbstractContextManager:
    """Where autocast leaves everything in its own precision; no switch, which costs a small step, without it."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _AS_IT_IS
