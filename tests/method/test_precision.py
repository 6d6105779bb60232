"""Which types sums are kept in."""

import pytest
import torch

from madtp.method.precision import accumulator, at_least_single


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_halves_are_summed_in_single_precision_and_the_others_in_their_own(dtype):
    expected = torch.float32 if torch.finfo(dtype).bits == 16 else dtype
    assert accumulator(dtype) == at_least_single(torch.ones(2, dtype=dtype)).dtype == expected
