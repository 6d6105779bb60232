"""Where a run stands, and going on from there as if it had never stopped."""

import math
import random
from argparse import Namespace
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from madtp.cost.processes import all_gather_objects, barrier, is_main, rank, world_size
from madtp.method.errors import UserError
from madtp.run.folder import LAST
from madtp.run.losses import Losses
from madtp.run.optimization import Optimization
from madtp.shared.weights import architecture, checkpoint

FLAGS = ("p", "controller", "temperature", "seed", "amp", "accum")  # that decide what a run computes
FREE = ("pretrained", "print_freq")  # keys of the configuration that a resumed run may change


@dataclass
class Progress:
    """What changes during a run besides weights, optimizer and losses.

    Attributes:
        epoch: to go on with, from 0.
        step: batches of that epoch which are behind; 0 if its temperature is still to be found.
        temperature: the last one, None in a new run.
        best: the best score so far.
        shape: of the schedule by which tokens go, where the rule has one.
    """

    epoch: int = 0
    step: int = 0
    temperature: float | None = None
    best: float = -math.inf
    shape: float | None = None


@dataclass
class State:
    """All that changes during a run. Without it there is nothing to resume; with it, every bit comes out the same.

    Attributes:
        folder: of the output.
        settings: what the run is, see `settings`.
        model: the bare model; momentum towers and queues are part of it.
        optimization: of the run.
        losses: of the running epoch.
        progress: how far it is.
        bad_images: of this process in the running epoch: what was wrong with an image, and how often it was met.
    """

    folder: Path
    settings: dict
    model: nn.Module
    optimization: Optimization
    losses: Losses
    progress: Progress = field(default_factory=Progress)
    bad_images: Counter = field(default_factory=Counter)

    def save(self) -> None:
        """Replaces `checkpoint_last.pth`, the only one there is; all processes call it and wait until it is safe."""
        own = {"random": random_state(), "losses": self.losses.state_dict(), "bad_images": dict(self.bad_images)}
        processes = all_gather_objects(own)
        if is_main():
            entries = {**self.optimization.state_dict(), **asdict(self.progress), "settings": self.settings}
            entries |= {"processes": processes, "keep": self.settings["keep"]}
            entries |= {"batch_size": self.settings["batch_size_test"], **architecture.entry(self.model)}
            checkpoint.save(self.folder / LAST, model=self.model.state_dict(), **entries)
        barrier()

    def resume(self, request: str | None, anyway: bool) -> None:
        """Fills everything from a `checkpoint_last.pth`.

        Args:
            request: its path; or "auto" for the one in `folder`, or a new run if there is none yet; None for a new run.
            anyway: go on under other settings. With another number of processes their random numbers and the running
                means begin anew.

        Raises:
            UserError: the file does not hold a run, or one with other settings or of another model.
        """
        path = self.folder / LAST if request == "auto" else request
        if request is None or request == "auto" and not path.exists():
            return
        content = checkpoint.read(path)
        try:
            different = differences(content["settings"], self.settings)
            if different and not anyway:
                raise UserError(f"{path} is a run with {different}; --resume_anyway goes on regardless")
            checkpoint.fit(self.model, content, path, evaluate=True)
            self.optimization.load_state_dict(content)
            content.setdefault("shape", None)  # a run from before there was one
            self.progress = Progress(**{name: content[name] for name in Progress.__dataclass_fields__})
            if different:
                samples = self.progress.step * batch_size(content["settings"])
                self.progress.step = samples // batch_size(self.settings)
            processes = content["processes"]
            if len(processes) == world_size():
                restore_random_state(processes[rank()]["random"])
                self.losses.load_state_dict(processes[rank()]["losses"])
                self.bad_images = Counter(processes[rank()]["bad_images"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} does not hold a run to resume ({error!r}); name a {LAST}") from error


def settings(task: str, args: Namespace, config: dict) -> dict:
    """What must be the same for a run to go on as it began: name -> value."""
    flags = {f"--{name}": getattr(args, name) for name in FLAGS}
    keys = {name: value for name, value in config.items() if name not in FREE}
    return {"task": task, **flags, "processes": world_size(), **keys}


def differences(old: dict, new: dict) -> str:
    """Names the settings that differ, with both values; empty if there are none."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)!r} instead of {new.get(name)!r}" for name in names)


def batch_size(settings: dict) -> int:
    """Samples that one batch of every process takes together."""
    return settings["batch_size_train"] * settings["processes"]


def random_state() -> dict:
    """The state of this process's random numbers."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict) -> None:
    """Sets this process's random numbers."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
