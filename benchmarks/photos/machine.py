"""What models run on."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """A device, and what it multiplies in.

    Attributes:
        device: "cpu" or "cuda".
        dtype: float32, or bf16 for mixed precision.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def mixed(self) -> AbstractContextManager:
        """Mixed precision, where there is any."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def seconds(self) -> float:
        """A clock: of a processor its own time, which others do not stretch, of a GPU when its work is done."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def described(self) -> dict[str, str]:
        """For the results: the precision and, beside the processor, the GPU."""
        told = {"precision": "bf16" if self.dtype == torch.bfloat16 else "float32"}
        return told if self.device == "cpu" else told | {"device": torch.cuda.get_device_name()}
