"""What the processes of a run tell each other. On one process every function here is a no-op."""

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

TIMEOUT = timedelta(hours=2)  # after which one that waits for the others gives up


def is_distributed() -> bool:
    """Whether several processes work on this run."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """The number of processes of this run."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process has come here."""
    if is_distributed():
        dist.barrier()


def all_reduce_sum(value: torch.Tensor | float) -> torch.Tensor | float:
    """Sums `value` over all processes; a number in gives a float back, the argument is left as it was."""
    if not is_distributed():
        return value
    if not isinstance(value, torch.Tensor):
        return all_reduce_sum(torch.tensor(float(value), dtype=torch.float64)).item()
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    total = value.detach().to(device, copy=True)
    dist.all_reduce(total)
    return total.to(value.device)


def on_any_process(flag: bool) -> bool:
    """Whether `flag` is set on some process. The processors tell each other; no GPU is waited for."""
    if not is_distributed():
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=_processors())
    return bool(flags)


@cache
def _processors() -> dist.ProcessGroup | None:
    """All processes, connected past their GPUs; None is the default group, which will do where there are none."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=TIMEOUT)


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Joins every process's tensor along the first axis, in the order of ranks; shapes are alike everywhere.

    Gradients flow back to the process that a part came from. All processes have to run the backward pass then.
    """
    return _AllGather.apply(tensor) if is_distributed() else tensor


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def all_gather_objects(value: object) -> list:
    """Collects one picklable object of every process into a list, in the order of ranks."""
    if not is_distributed():
        return [value]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def gather_in_order(parts: list[tuple[int, Result]]) -> list[tuple[int, Result]]:
    """Every process's numbered parts in one list, in the order of their numbers."""
    return sorted(sum(all_gather_objects(parts), []), key=lambda part: part[0])


def from_main(function: Callable[[], Result]) -> Result:
    """What `function` returns on the main process, the only one to call it; the others wait."""
    return all_gather_objects(function() if is_main() else None)[0]
