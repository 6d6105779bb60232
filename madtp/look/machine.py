"""What a machine can give: how many of its cores are free, and how fast one of them trains a small model."""

import os
import time
from pathlib import Path

STATISTICS = Path("/proc/stat")
WATCHED = 0.5  # seconds
STEPS, STEP_SECONDS = 6, 0.046  # of `pace`, and what one took where the demo's stages took as long as they say


def usable_cores() -> list[int]:
    """The cores that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def free_cores(seconds: float = WATCHED) -> int:
    """How many of the usable cores others leave free, at least 1; all of them where the system does not tell.

    Threads that compute together wait for each other by spinning: with one more than there are free cores, all of them
    are slowed down to where a single one would have been many times faster.
    """
    cores, before = usable_cores(), _idle_times()
    if before is None or not before.keys() >= {*cores}:  # a container may number them anew
        return len(cores)
    time.sleep(seconds)
    after = _idle_times()
    free = 0.0
    for core in cores:
        idle, total = (now - then for now, then in zip(after[core], before[core], strict=True))
        free += idle / total if total else 1.0
    return max(1, round(free))


def _idle_times() -> dict[int, tuple[int, int]] | None:
    """Ticks that each core was idle, and all of its ticks; None where the system does not tell."""
    try:
        lines = STATISTICS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    rows = [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]
    return {int(name[3:]): (int(ticks[3]) + int(ticks[4]), sum(map(int, ticks))) for name, *ticks in rows}


def use_free_cores() -> str:
    """Lets this process and those that it starts compute in as many threads as cores are free, or as the user says.

    Returns:
        What was chosen, for people to read.
    """
    import torch

    asked, cores = os.environ.get("OMP_NUM_THREADS"), len(usable_cores())
    if asked:
        return f"{torch.get_num_threads()} threads, as OMP_NUM_THREADS says, on {cores} cores"
    free = free_cores()
    os.environ["OMP_NUM_THREADS"] = str(free)
    torch.set_num_threads(free)
    return f"{free} threads: of {cores} cores {free} are free (OMP_NUM_THREADS decides otherwise)"


def pace() -> float:
    """How many times as long as where the demo was timed a training step takes here, now, in one thread."""
    import torch

    from models.vit import VisionTransformer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = VisionTransformer(img_size=84, patch_size=12, embed_dim=96, depth=4, num_heads=3, sd_dim=96)
    images, seconds = torch.zeros(16, 3, 84, 84), []
    for _ in range(STEPS):
        begun = time.perf_counter()
        model(images)[0].sum().backward()
        seconds.append(time.perf_counter() - begun)
    torch.set_num_threads(threads)
    return sum(sorted(seconds)[1:-1]) / (STEPS - 2) / STEP_SECONDS
