"""What every part of the project shares, handed on from where it stands: errors, processes, files, meters, seeds."""

from madtp.cost.processes import (
    all_gather,
    all_gather_objects,
    all_reduce_sum,
    barrier,
    from_main,
    init_distributed,
    is_distributed,
    is_main,
    leave_distributed,
    on_any_process,
    rank,
    world_size,
)
from madtp.method.errors import UserError, excerpt
from madtp.run.meters import AverageMeter, Meters
from madtp.run.optimization import cosine_lr
from madtp.run.randomness import set_seed
from madtp.shared.files import prepare_output, read_json, whole_file, write_atomic

__all__ = [
    "AverageMeter",
    "Meters",
    "UserError",
    "all_gather",
    "all_gather_objects",
    "all_reduce_sum",
    "barrier",
    "cosine_lr",
    "excerpt",
    "from_main",
    "init_distributed",
    "is_distributed",
    "is_main",
    "leave_distributed",
    "on_any_process",
    "prepare_output",
    "rank",
    "read_json",
    "set_seed",
    "whole_file",
    "world_size",
    "write_atomic",
]
