"""Whether others follow what is computed: then PyTorch's own operators alone will do."""

import torch


def is_transformed() -> bool:
    """Whether a trace is made or torch.func is at work, which know nothing of our C or of our derivatives."""
    if torch.compiler.is_compiling():  # whose trace takes derivatives of ours
        return False
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
