"""What a run has when it begins: data, model, optimizer, the controller of the temperature, its last state."""

import inspect
import logging
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from madtp.cost.measure import CalibrationSample, device_of
from madtp.cost.processes import barrier, from_main, is_main, rank, world_size
from madtp.cost.temperature import RECIPES, ClosedLoop, Controller, Fixed, Ladder
from madtp.method.distillation import Teacher
from madtp.method.errors import UserError
from madtp.method.rules import COVERAGE, knob, setting
from madtp.run import config as configuration
from madtp.run import output, scalars
from madtp.run.folder import begin_anew, goes_on_here
from madtp.run.interruption import Interruption
from madtp.run.losses import Losses
from madtp.run.optimization import Optimization
from madtp.run.precision import announce_precision, inference, precision, settled
from madtp.run.resume import Progress, State, settings, stopped_amp
from madtp.run.task import Task
from madtp.run.texts import refuse_long_texts
from madtp.shared.weights.stored import Stored
from utils import set_seed

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """What stays the same during a run.

    Attributes:
        task: what is trained and scored.
        args: the flags.
        config: the resolved configuration.
        folder: of the output.
        model: the bare model, on its device.
        loaders: by split; a split that does not exist is absent.
        dtype: of mixed precision, float32 for none.
        stored: how the model of the checkpoint to evaluate prunes.
        interruption: tells whether a signal came.
        write_scalars: also logs an epoch's record elsewhere.
    """

    task: Task
    args: Namespace
    config: dict
    folder: Path
    model: nn.Module
    loaders: dict[str, DataLoader]
    dtype: torch.dtype
    stored: Stored = Stored()
    interruption: Interruption = field(default_factory=Interruption)
    write_scalars: scalars.Write = lambda record: None

    @property
    def selection(self) -> str:
        """The split that steers the temperature and chooses the checkpoint: validation, or test where there is none."""
        return "val" if "val" in self.loaders else "test"

    @contextmanager
    def inference(self) -> Iterator[nn.Module]:
        """The model for evaluation: no dropout, no gradients, mixed precision."""
        self.model.eval()
        with inference(self.model, self.dtype) as model:
            yield model

    def calibration_sample(self) -> CalibrationSample:
        """What temperatures and schedules are tried on."""
        return CalibrationSample(self.loaders[self.selection], self.config["calibration_batches"])

    @property
    def rule(self) -> dict:
        """By which rule the model prunes."""
        return self.task.rule(self.model)

    def pruned_at(self, temperature: float) -> str:
        """How much is pruned at a temperature, for people to read."""
        return setting(temperature=temperature, **self.rule)

    @property
    def scored_splits(self) -> list[str]:
        """What is evaluated after every epoch."""
        return [split for split in self.task.epoch_splits if split in self.loaders]


def prepare(task: Task, args: Namespace, config: dict) -> Run:
    """Reads data and model; whatever the user has to mend shows here, before anything is trained.

    Raises:
        UserError: a file, a key or an image folder that is missing, or does not fit the others.
    """
    from data import create_loader  # only now, so that --help and a wrong flag are answered at once

    if args.evaluate and not config["pretrained"]:
        raise UserError("--evaluate has no checkpoint to evaluate; name it with --pretrained")
    folder, processes = Path(args.output_dir), world_size()
    task.config = config
    if args.download and is_main():
        task.download(config["pretrained"])
    barrier()  # all wait for what is being downloaded
    stored = task.adopt(args.evaluate)
    device = torch.device(args.device)
    settle_precision(args, config, device)
    set_seed(args.seed, args.deterministic)
    loaders = {}
    for split, dataset in zip(("train", "val", "test"), task.datasets(args.evaluate), strict=True):
        if dataset is not None:
            train = split == "train"
            size = config["batch_size_train" if train else "batch_size_test"]
            options = {
                "steps": config["epoch_steps"],
                "replace": args.bad_images == "skip",
                "pin": device.type == "cuda",
            }
            loaders[split] = create_loader(
                dataset, size, train, args.seed, args.num_workers, rank(), processes, **options
            )
    if args.evaluate:  # a model is scored by the rule that it was trained with, unless the command line says otherwise
        named = configuration.named(args.set)
        keep = config["keep"] if args.keep or "keep" in named else None
        config |= stored.rule(keep, args.temperature, config, named)
    configuration.refuse_unsaid_shape(config, args.temperature)
    model = task.build_model(config, args.evaluate).to(device)
    for split, loader in loaders.items():
        look_through(task, model, split, loader.dataset.dataset)
    set_seed(args.seed + rank())  # the weights are drawn alike, dropout is not
    stored = stored if args.evaluate else Stored()
    return Run(task, args, config, folder, model, loaders, precision(config["amp"], device), stored)


def settle_precision(args: Namespace, config: dict, device: torch.device) -> None:
    """Makes `amp` of the configuration what it stands for: a run that goes on stays what it was, wherever it does."""
    asked = config["amp"]
    if asked == "auto":
        was = None if args.evaluate else stopped_amp(Path(args.output_dir), args.resume, device)
        config["amp"] = from_main(lambda: was or settled("auto", device))
    announce_precision(asked, config["amp"], device)


def look_through(task: Task, model: nn.Module, split: str, dataset: Dataset) -> None:
    """Refuses texts that are too long for the model, and says what is remarkable about a split."""
    if hasattr(dataset, "all_texts"):
        refuse_long_texts(model, dataset.all_texts())
    for remark in task.remarks(split, dataset):
        logger.info("%s: %s", split, remark)


def begin(run: Run) -> tuple[Controller, State]:
    """What decides the temperature, and the state to begin with: a new one, or where --resume says that it stood.

    The output folder's log ends where the run goes on; what an earlier run left there goes.
    """
    args, batches, samples = run.args, len(run.loaders["train"]), len(run.loaders["train"].dataset)
    controller = choose_controller(run.task, args, run.config)
    if not controller.prunes:
        freeze_alignment(run.model)
        if run.config["distill"]:
            logger.warning("distill %g has no effect: nothing is pruned that could learn", run.config["distill"])
    elif run.config["distill"]:
        run.model.teacher = teacher_of(run.model, run.config)
    optimization = Optimization(data_parallel(run.model), run.config, run.dtype, args.accum, batches)
    scaled, clipped = run.dtype == torch.float16, run.config["clip_grad"] > 0
    losses = Losses(args.skip_nonfinite, args.accum, scaled, clipped)
    own = settings(run.task.name, args, run.config, samples)
    state = State(run.folder, own, run.model, optimization, losses)
    state.resume(args.resume, args.resume_anyway)
    announce(run, controller, state.progress)
    if is_main():
        if not goes_on_here(run.folder, args.resume):
            begin_anew(run.folder)
        output.start_log(run.folder, state.progress.epoch)
    return controller, state


def choose_controller(task: Task, args: Namespace, config: dict) -> Controller:
    """What decides the temperature: the user, nothing (p 0), the released ladder or the closed loop.

    Raises:
        UserError: a rule without a temperature is to be steered by one, or one that is fixed is to be moved.
    """
    if config["keep"] == COVERAGE and args.controller == "ladder":
        raise UserError("--controller ladder moves MADTP's temperature, which --keep coverage has not; leave one out")
    if args.temperature is not None and args.controller == "ladder":
        raise UserError("--controller ladder moves the temperature, which --temperature fixes; leave one out")
    if args.temperature is not None:
        return Fixed(args.temperature)
    if args.p == 0:
        return Fixed(0.0)
    if args.controller == "ladder":
        return Ladder(args.p, RECIPES[task.recipe])
    return ClosedLoop(args.p, config["max_epoch"], config["ramp"], config["cost_slack"], knob(config["keep"]))


def teacher_of(model: nn.Module, config: dict) -> Teacher:
    """The dense image tower of the checkpoint that a run starts from, whatever it goes on with after --resume.

    Raises:
        UserError: it starts from none.
    """
    refuse_no_teacher(config)
    return Teacher(model.image_tower)


def refuse_no_teacher(config: dict) -> None:
    """Raises a UserError where there is to be learned from a dense model, and none is named."""
    if config["distill"] and not config["pretrained"]:
        found = f"distill is {config['distill']:g}, but there is no dense model to learn from"
        raise UserError(f"{found}: --pretrained names it")


def freeze_alignment(model: nn.Module) -> None:
    """The dense model never uses the learnable tokens: without gradients they would stall data-parallel training."""
    for name, parameter in model.named_parameters():
        if "space_dict" in name or "query_model" in name:
            parameter.requires_grad_(False)


def data_parallel(model: nn.Module) -> nn.Module:
    """The model to train with: gradients are averaged over the processes, if there are several."""
    if world_size() == 1:
        return model
    device = device_of(model)
    known = inspect.signature(DistributedDataParallel).parameters
    # Buffers are equal everywhere already: positions never change, queues are filled with what was gathered.
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before 2.15
    return DistributedDataParallel(model, [device] if device.type == "cuda" else None, **{sync_buffers: False})


def announce(run: Run, controller: Controller, progress: Progress) -> None:
    """Says what is about to happen."""
    batch, processes, accum = run.config["batch_size_train"], world_size(), run.args.accum
    sizes = ", ".join(f"{len(loader.dataset)} {split}" for split, loader in run.loaders.items())
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    logger.info("%s: %s samples; %.1f M parameters", run.task.name, sizes, parameters / 1e6)
    logger.info(
        "effective batch %d = %d x %d processes x %d accumulated", batch * processes * accum, batch, processes, accum
    )
    logger.info("%s; the best checkpoint is chosen on %s", controller, run.selection)
    if progress.epoch >= run.config["max_epoch"]:
        logger.info("all %d epochs are done; a larger --epoch with --resume_anyway trains on", progress.epoch)
    elif progress.epoch or progress.step:
        logger.info("resuming at epoch %d, step %d", progress.epoch, progress.step)
