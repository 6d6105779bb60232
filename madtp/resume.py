"""Where a run stands, and going on from there as if it had never stopped."""

import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from madtp import checkpoint
from madtp.optimization import Optimization
from utils import UserError, all_gather_objects, is_main, rank, set_seed

LAST = "checkpoint_last.pth"


@dataclass
class Progress:
    """What changes during a run besides weights and optimizer.

    Attributes:
        epoch: to go on with, from 0.
        step: of that epoch.
        temperature: the last one, None in a new run.
        best: the best score so far.
    """

    epoch: int = 0
    step: int = 0
    temperature: float | None = None
    best: float = -math.inf


def save(folder: Path, model: nn.Module, optimization: Optimization, progress: Progress) -> None:
    """Writes `checkpoint_last.pth`; all processes call it, each has random numbers of its own to save."""
    states = random_states()
    if is_main():
        entries = {"model": model.state_dict(), **optimization.state_dict(), **asdict(progress), "random": states}
        checkpoint.save(folder / LAST, **entries)


def resume(request: str | None, folder: Path, model: nn.Module, optimization: Optimization, seed: int) -> Progress:
    """Fills model and optimizer from a `checkpoint_last.pth`.

    Args:
        request: its path; or "auto" for the one in `folder`, or a new run if there is none yet; None for a new run.
        folder: of the run's output.
        model: the bare model.
        optimization: of the run.
        seed: for random numbers where the number of processes has changed.

    Raises:
        UserError: the file does not hold a run, or one of another model.
    """
    path = folder / LAST if request == "auto" else request
    if request is None or request == "auto" and not path.exists():
        return Progress()
    state = checkpoint.load(model, path, evaluate=True).entries
    try:
        optimization.load_state_dict(state)
        restore_random_states(state["random"], seed)
        return Progress(**{name: state[name] for name in Progress.__dataclass_fields__})
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} does not hold a run of this configuration to resume ({error}); name a {LAST}"
        ) from error


def random_states() -> list[dict]:
    """The state of every process's random numbers, by rank."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return all_gather_objects(state)


def restore_random_states(states: list[dict], seed: int) -> None:
    """Sets this process's random numbers; from `seed` where the run had another number of processes."""
    if rank() >= len(states):
        set_seed(seed)
        return
    state = states[rank()]
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
