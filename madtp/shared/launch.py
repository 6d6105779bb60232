"""How the processes of a run meet, each with its GPU, and part again."""

import os
import re
import sys
import threading
from argparse import Namespace

import torch
import torch.distributed as dist

from madtp.cost.processes import TIMEOUT, is_distributed
from madtp.method.errors import UserError

USUAL_WAIT = 20.0  # seconds in which processes meet; whoever waits longer says so


def init_distributed(args: Namespace) -> None:
    """Joins the process group that torchrun or SLURM has announced; plain `python` stays one process.

    Sets `args.distributed` and `args.world_size` to what is so, and of several processes `args.device` to the own GPU.

    Args:
        args: `device`, `dist_url`, `world_size` of the command line.

    Raises:
        UserError: what was announced cannot be, this machine has fewer GPUs than processes, or they cannot meet.
    """
    process, processes, local = _announced(args.world_size)
    if process >= processes:
        raise UserError(f"this is process {process} of {processes} by the launcher's variables; they count from 0")
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
    saying = threading.Timer(USUAL_WAIT, lambda: print(said, file=sys.stderr, flush=True))
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
        return _number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK")
    if "SLURM_PROCID" in env:
        # Only srun sets SLURM_STEP_NUM_TASKS: a plain `python` in a batch script is one process, whatever it reserved.
        processes = _number("SLURM_STEP_NUM_TASKS", requested)
        first = re.match(r"([^\[,]*)(?:\[(\w+))?", env.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        env.setdefault("MASTER_ADDR", first[1] + (first[2] or ""))
        env.setdefault("MASTER_PORT", str(20000 + _number("SLURM_JOB_ID") % 20000))
        return _number("SLURM_PROCID"), processes, _number("SLURM_LOCALID")
    return 0, 1, 0


def _number(name: str, otherwise: int = 0) -> int:
    """What a launcher's variable says, or what holds without it."""
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r}, expected the number that a launcher sets; unset it to run one process")
    return int(text)
