"""Where a run stands, and going on from there as if it had never stopped."""

import logging
import math
import random
from argparse import Namespace
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from madtp.cost.measure import device_of
from madtp.cost.processes import all_gather_objects, barrier, is_main, rank, world_size
from madtp.method.errors import UserError
from madtp.run.folder import run_file
from madtp.run.keys import COMMON_KEYS
from madtp.run.losses import Losses
from madtp.run.optimization import Optimization
from madtp.run.precision import settled
from madtp.shared.run_files import LAST
from madtp.shared.weights import architecture, checkpoint

FLAGS = ("p", "controller", "temperature", "seed", "accum")  # that decide what a run computes
FREE = ("pretrained", "print_freq")  # keys of the configuration that a resumed run may change
YOUNGER = ("distill", "keep_norm")  # keys that runs may have been stopped without
AMOUNT = ("keep", "keep_norm", "shape", "--p", "--temperature", "--controller")  # that decide how much is pruned
QUALIFYING = (*AMOUNT, "cost_slack")  # and which epochs may be the best
STEERED = ("--p", "--controller", "cost_slack")  # of which none matters where a temperature is given
SAMPLES = "training samples"  # a set of another size is gone through in another order

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """What changes during a run besides weights, optimizer and losses.

    Attributes:
        epoch: to go on with, from 0.
        step: batches of that epoch which are behind.
        temperature: the last one; None where it is to be found first, even within an epoch.
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
            entries |= {"processes": processes, "batch_size": self.settings["batch_size_test"]}
            entries |= {name: self.settings[name] for name in ("keep", "keep_norm")} | architecture.entry(self.model)
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
        path = stopped_at(self.folder, request)
        if path is None:
            return
        content = read_stopped(path)
        try:
            unsaid = {SAMPLES: self.settings[SAMPLES]}  # by earlier versions
            settings_before = unsaid | renewed(content["settings"], device_of(self.model))
            names = differing(settings_before, self.settings)
            different = with_both_values(names, settings_before, self.settings)
            if names and not anyway:
                raise UserError(f"{path} is a run with {different}; --resume_anyway goes on regardless")
            checkpoint.fit(self.model, content, path, evaluate=True)
            self._resume_optimization(content, path, different)
            content.setdefault("shape", None)  # a run from before there was one
            self.progress = Progress(**{name: content[name] for name in Progress.__dataclass_fields__})
            self.progress = under_other_settings(self.progress, names, self.settings)
            if names:
                samples = self.progress.step * batch_size(settings_before)
                step = samples // batch_size(self.settings)
                self.progress.step = step - step % self.optimization.accum  # where a group of batches begins
            processes = content["processes"]
            if len(processes) == world_size():
                restore_random_state(processes[rank()]["random"])
                self.losses.load_state_dict(processes[rank()]["losses"])
                self.bad_images = Counter(processes[rank()]["bad_images"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} does not hold a whole run ({error!r}); name a {LAST}") from error

    def _resume_optimization(self, content: dict, path: Path, different: str) -> None:
        try:
            self.optimization.load_state_dict(content)
        except ValueError as error:  # what only pruning needs is not trained in a dense run
            way_out = f"begin anew with its weights: --pretrained {path}, without --resume"
            raise UserError(f"{path} trained other parameters, being a run with {different}; {way_out}") from error


def settings(task: str, args: Namespace, config: dict, samples: int) -> dict:
    """What must be the same for a run to go on as it began, the size of its training set included: name -> value."""
    flags = {f"--{name}": getattr(args, name) for name in FLAGS}
    keys = {name: value for name, value in config.items() if name not in FREE}
    return {"task": task, **flags, "processes": world_size(), SAMPLES: samples, **keys}


def stopped_at(folder: Path, request: str | None) -> Path | None:
    """The file of the run that --resume asks to go on with, None for a new run."""
    if request == "auto":
        return folder / LAST if (folder / LAST).exists() else None
    return None if request is None else run_file(request)


def read_stopped(path: Path) -> dict:
    """The content of a file to go on from.

    Raises:
        UserError: it is not there or damaged, or holds weights and no run.
    """
    begin = "or begin anew from weights with --pretrained"
    if not path.is_file():
        raise UserError(f"--resume: {path} is no file; name a {LAST}, {begin}")
    try:
        content = checkpoint.read(path)
    except UserError as error:
        raise UserError(f"--resume: {str(error).partition(';')[0]}; name another {LAST}, {begin}") from error
    if "settings" not in content:
        raise UserError(f"--resume: {path} holds weights and no run to go on with; name a {LAST}, {begin}")
    return content


def stopped_amp(folder: Path, request: str | None, device: torch.device) -> str | None:
    """The mixed precision of the run to go on with; None where there is none, or a file that holds no run."""
    path = stopped_at(folder, request)
    if path is None:
        return None
    return renewed(read_stopped(path)["settings"], device).get("amp")


def renewed(settings: dict, device: torch.device) -> dict:
    """The settings as they are called today: what did not exist yet was at its default.

    The flag --amp was kept as given, and auto was off on a processor.
    """
    settings = {name: COMMON_KEYS[name].default for name in YOUNGER} | settings
    if "--amp" not in settings:
        return settings
    today = {name: value for name, value in settings.items() if name != "--amp"}
    asked = settings["--amp"]
    return today | {"amp": "off" if (asked, device.type) == ("auto", "cpu") else settled(asked, device)}


def differing(old: dict, new: dict) -> list[str]:
    """The names of the settings that differ."""
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def with_both_values(names: Collection[str], old: dict, new: dict) -> str:
    """Some settings as they were and as they are, for people to read."""
    return ", ".join(f"{name} {old.get(name)!r} instead of {new.get(name)!r}" for name in names)


def under_other_settings(progress: Progress, names: Collection[str], settings: dict) -> Progress:
    """A progress from where other settings count.

    A best score at another cost says nothing, so the best is chosen anew, and how much is pruned is found anew. Only a
    ladder, which climbs from epoch to epoch, goes on from where it is.

    Args:
        progress: that was made before.
        names: of the settings that differ.
        settings: as they are now.
    """
    given = settings["--temperature"] is not None and "--temperature" not in names
    changed = {name for name in names if name in QUALIFYING and not (given and name in STEERED)}
    if not changed:
        return progress
    logger.info("another %s: from here on the best checkpoint is chosen anew", ", ".join(sorted(changed)))
    progress = replace(progress, best=-math.inf)
    climbing = settings["--controller"] == "ladder" and "--controller" not in changed
    return progress if climbing or changed == {"cost_slack"} else replace(progress, temperature=None, shape=None)


def batch_size(settings: dict) -> int:
    """Samples that one batch of every process takes together."""
    return settings["batch_size_train"] * settings["processes"]


def random_state() -> dict:
    """The state of this process's random numbers."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # a run on the processor leaves a GPU alone
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict) -> None:
    """Sets this process's random numbers."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
