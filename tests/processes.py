"""Runs of a task in forked processes: quick to start, free to be killed, alone or with a process group between them."""

import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.connection import wait

import torch

from madtp.run.engine import main


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*tasks, flags, timeout=240):
    """Runs `main` of each task in a process of its own, together one run, and returns the exit statuses.

    As under a launcher, the others are killed once one has failed: their status is then -9.
    """
    port, context = free_port(), multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_work, args=(task, rank, len(tasks), port, [*map(str, flags)]))
        for rank, task in enumerate(tasks)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
        wait([process.sentinel for process in processes if process.exitcode is None], timeout=1)
        if any(process.exitcode for process in processes):
            wait([process.sentinel for process in processes], timeout=0.2)
            break
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _work(task, rank, world, port, flags):
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(main(task, flags))
