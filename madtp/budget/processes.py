"""The processes of a run, and what they tell each other. On one process every function here is a no-op."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist

from madtp.method.errors import UserError

Result = TypeVar("Result")

HANGUP = getattr(signal, "SIGHUP", None)  # when a terminal closes; not on Windows
SIGNALS = (signal.SIGINT, signal.SIGTERM, *filter(None, [HANGUP]))  # that ask a process to leave

PATIENCE = 20.0  # seconds in which the processes of a run usually meet
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


def from_main(function: Callable[[], Result]) -> Result:
    """What `function` returns on the main process, the only one to call it; the others wait."""
    return all_gather_objects(function() if is_main() else None)[0]


def init_distributed(args) -> None:
    """Joins the process group that torchrun or SLURM has announced; plain `python` stays one process.

    Sets `args.distributed` and `args.world_size` to what is so, and of several processes `args.device` to the own GPU.

    Args:
        args: `device`, `dist_url`, `world_size` of the command line.

    Raises:
        UserError: this machine has fewer GPUs than processes, or they cannot meet.
    """
    process, processes, local = _announced(args.world_size)
    args.world_size, args.distributed = processes, processes > 1
    if not args.distributed:
        take_gpu(torch.device(args.device))
        return
    options = {"backend": "gloo"}
    if torch.device(args.device).type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}: "
                "start as many processes as GPUs (NPROC, --nproc_per_node)"
            )
        own = torch.device("cuda", local)
        take_gpu(own)
        args.device, options = str(own), {"backend": "nccl", "device_id": own}
    options |= {"init_method": args.dist_url, "rank": process, "world_size": processes}
    _meet(f"process {process} of {processes}", args.dist_url, options)


def take_gpu(device: torch.device) -> None:
    """Makes a GPU the current one, whose random numbers, clock and name are meant where no other is named."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def _meet(who: str, url: str, options: dict) -> None:
    """Joins the others, and says so where they do not come."""
    where = url if url != "env://" else ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    said = f"{who} waits for the others at {where}: are they started, and is that address within their reach?"
    saying = threading.Timer(PATIENCE, lambda: print(said, file=sys.stderr, flush=True))
    saying.daemon = True
    saying.start()
    try:
        dist.init_process_group(timeout=TIMEOUT, **options)
    except (RuntimeError, ValueError) as error:
        taken = "EADDRINUSE" in str(error) or "in use" in str(error)
        way_out = "another run has it, choose another --master_port" if taken else "start them by torch.distributed.run"
        raise UserError(f"{who} cannot meet the others at {where}: {str(error).splitlines()[0]}; {way_out}") from error
    finally:
        saying.cancel()


def leave_distributed(together: bool) -> None:
    """Leaves the process group; `together` if all processes do.

    An interpreter that ends before gloo's threads may abort. NCCL, though, would wait for those who never come.
    """
    if is_distributed() and (together or dist.get_backend() == "gloo"):
        dist.destroy_process_group()


def _announced(requested: int) -> tuple[int, int, int]:
    """Reads (rank, world size, local rank) from the variables of torchrun or, else, of SLURM's srun."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    if "SLURM_PROCID" in env:
        # Only srun sets SLURM_STEP_NUM_TASKS: a plain `python` in a batch script is one process, whatever it reserved.
        processes = int(env.get("SLURM_STEP_NUM_TASKS", requested))
        first = re.match(r"([^\[,]*)(?:\[(\w+))?", env.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        env.setdefault("MASTER_ADDR", first[1] + (first[2] or ""))
        env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 20000))
        return int(env["SLURM_PROCID"]), processes, int(env.get("SLURM_LOCALID", 0))
    return 0, 1, 0
