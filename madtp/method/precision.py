"""Sums and norms in at least single precision: halves lose them."""

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Half-precision sums are kept in float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def at_least_single(x: Tensor) -> Tensor:
    """Half precision as single."""
    return x.to(accumulator(x.dtype))
