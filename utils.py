"""What every room shares: the error users see, the process group, seeds, the schedule, meters, whole files."""

import errno
import json
import math
import os
import random
import re
import reprlib
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

Result = TypeVar("Result")


class UserError(ValueError):
    """A mistake the user can mend. Its message is one line: the value, the file and the way out."""


_EXCERPT = reprlib.Repr()
_EXCERPT.maxstring = 60


def excerpt(value: object) -> str:
    """What a user wrote, for an error: one line, never long, however large or deep the value is."""
    try:
        text = _EXCERPT.repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        text = f"a {type(value).__name__} with too many digits"
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:120]}..."


# Process group. On one process every function below is a no-op.


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
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


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

    Sets `args.distributed` and `args.world_size` to what is so. The device `cuda` becomes this process's own GPU.

    Args:
        args: `device`, `dist_url`, `world_size` of the command line.

    Raises:
        UserError: this machine has fewer GPUs than processes.
    """
    process, processes, local = _announced(args.world_size)
    args.world_size, args.distributed = processes, processes > 1
    if not args.distributed:
        return
    options = {"backend": "gloo"}
    if torch.device(args.device).type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}: "
                "start as many processes as GPUs (NPROC, --nproc_per_node)"
            )
        torch.cuda.set_device(local)
        options = {"backend": "nccl", "device_id": torch.device("cuda", local)}
    dist.init_process_group(
        init_method=args.dist_url, rank=process, world_size=processes, timeout=timedelta(hours=2), **options
    )


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


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seeds Python, numpy and torch on every device.

    Args:
        seed: at least 0.
        deterministic: also compute with operations alone that give the same bits again, where GPUs have a choice.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses without it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def cosine_lr(init: float, minimum: float, step: int, total: int) -> float:
    """The learning rate at `step` of `total`: half a cosine from `init` at 0 to `minimum` at `total`."""
    progress = min(step / total, 1.0) if total > 0 else 0.0
    return minimum + (init - minimum) * (1 + math.cos(math.pi * progress)) / 2


# Meters.


class AverageMeter:
    """The mean of a stream of numbers. Tensors are summed on their device; only reading the mean waits for it."""

    def __init__(self):
        self.total = 0.0
        self.count = 0

    def update(self, value: torch.Tensor | float, n: int = 1) -> None:
        """Adds `value`, the mean over `n` samples."""
        if isinstance(value, torch.Tensor):
            value = value.detach().double()
        self.total = self.total + value * n
        self.count += n

    @property
    def mean(self) -> float:
        """The mean so far, NaN before the first update."""
        return float(self.total) / self.count if self.count else math.nan


class Meters(defaultdict):
    """Averages by name; `str()` is the line of a log."""

    def __init__(self):
        super().__init__(AverageMeter)

    def update(self, n: int = 1, **values: torch.Tensor | float) -> None:
        """Adds one value to each named meter, each the mean over `n` samples."""
        for name, value in values.items():
            self[name].update(value, n)

    def means(self) -> dict[str, float]:
        """The mean of each meter of this process."""
        return {name: meter.mean for name, meter in self.items()}

    def synchronize(self) -> None:
        """Makes every meter the one over all processes. All processes call it, holding the same names."""
        for name in sorted(self):
            meter = self[name]
            meter.total = all_reduce_sum(float(meter.total))
            meter.count = int(all_reduce_sum(meter.count))

    def __str__(self) -> str:
        return "  ".join(f"{name} {mean:.4g}" for name, mean in self.means().items())


# Files.


@contextmanager
def whole_file(path: str | Path, size: int = 0):
    """Opens `path` for writing bytes so that it is replaced only by a complete file; a failure leaves the old one.

    Args:
        path: where the file ends up; until then it is `path` with `.tmp` behind it.
        size: the bytes it is going to have, where known, for the message.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = (
            error if isinstance(error, OSError) else error.__context__
        )  # torch.save hides a write that failed midway
        if not isinstance(cause, OSError):
            raise
        needed = f" ({size / 2**20:.1f} MiB)" if size >= 2**20 else f" ({size} bytes)" if size else ""
        way_out = "free some space" if cause.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another --output_dir"
        raise UserError(f"cannot write {path}{needed}: {cause.strerror or cause}; {way_out}") from error
    finally:
        with suppress(OSError):
            os.remove(temporary)


def read_json(path: str | Path, way_out: str) -> object:
    """Reads a JSON file that a user brought.

    Raises:
        UserError: no such file, or no JSON in it; the message ends with `way_out`.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"not JSON: {error}"
        raise UserError(f"{path}: {reason}; {way_out}") from error


def write_atomic(path: str | Path, text: str) -> None:
    """Writes `text` to `path` in one step: readers see the old file or the new one, never half."""
    content = text.encode()
    with whole_file(path, len(content)) as file:
        file.write(content)


def prepare_output(path: str | Path) -> Path:
    """Makes the output folder where it is missing and tries that it can be written.

    Raises:
        UserError: it cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --output_dir") from error
    return folder
