"""The engine of all tasks: train an epoch, evaluate, the loop that compresses a model, and `main` around them."""

import inspect
import json
import logging
import math
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from madtp.cost.measure import CalibrationSample, device_of, progress_bar, to_device
from madtp.cost.processes import (
    all_gather_objects,
    barrier,
    init_distributed,
    is_main,
    leave_distributed,
    on_any_process,
    rank,
    world_size,
)
from madtp.cost.temperature import RECIPES, ClosedLoop, Controller, Fixed, Ladder, RatioOutOfReach
from madtp.method.errors import UserError
from madtp.run import config as configuration
from madtp.run import output, scalars
from madtp.run.flags import parse
from madtp.run.interruption import Interrupted, Interruption
from madtp.run.losses import Losses, NonFinite
from madtp.run.optimization import Optimization, autocast, precision
from madtp.run.resume import Progress, State, settings
from madtp.run.task import Task
from madtp.shared.files import prepare_output, write_atomic
from madtp.shared.weights import checkpoint
from madtp.shared.weights.checkpoint import Stored
from utils import set_seed

__all__ = ["Task", "compress", "evaluate", "main", "train_one_epoch"]

BEST = "checkpoint_best.pth"

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
        with torch.inference_mode(), autocast(self.dtype, device_of(self.model)):
            yield self.model


def compress(run: Run) -> None:
    """The epoch loop: find the temperature, train, find it again for the weights that moved, evaluate, save."""
    epochs, splits = run.config["max_epoch"], [split for split in run.task.epoch_splits if split in run.loaders]
    controller = choose_controller(run.task, run.args, run.config)
    if not controller.prunes:
        freeze_alignment(run.model)
    state = start(run)
    announce(run, controller, state.progress)
    sample = CalibrationSample(run.loaders[run.selection], run.config["calibration_batches"])

    def cost(temperature: float) -> float:
        with run.inference() as inferring:
            return sample.cost(run.task, inferring, temperature)

    for epoch in range(state.progress.epoch, epochs):
        started = time.perf_counter()
        if state.progress.step == 0:  # else the run was resumed within the epoch, whose temperature is known
            state.progress.temperature = controller.before_epoch(cost, epoch, state.progress.temperature)
        with run.interruption.postponed():
            losses = train_one_epoch(run, state)
        temperature = controller.after_epoch(cost, epoch, state.progress.temperature)
        metrics = {split: evaluate(run, split, temperature) for split in splits}
        score = qualified_score(run, controller.target(epochs - 1), metrics[run.selection])
        best = -math.inf < score >= state.progress.best
        state.progress = Progress(epoch + 1, 0, temperature, score if best else state.progress.best)
        record = {
            "epoch": epoch,
            **{f"train_{name}": loss for name, loss in losses.items()},
            **output.flatten(metrics, run.selection),
            "target": output.percent(controller.target(epoch)),
            "temperature": temperature,
            "keep": run.config["keep"],
            "lr": state.optimization.rate,
            "skipped": state.losses.skipped,
            "bad_images": count_bad_images(state.bad_images),
            "seconds": time.perf_counter() - started,
            "best": best,
        }
        if is_main():
            output.log_epoch(run.folder, record)
            run.write_scalars(record)
            if best:
                entries = {"model": run.model.state_dict(), "epoch": epoch, "temperature": temperature}
                entries |= {"keep": run.config["keep"], "batch_size": run.config["batch_size_test"]}
                checkpoint.save(run.folder / BEST, **entries, metrics=record)
        state.save()
    if state.progress.best == -math.inf:
        logger.warning("no epoch came within cost_slack of p %g, so there is no %s", run.args.p, BEST)


def start(run: Run) -> State:
    """The state that a run begins with: a new one, or where --resume says that it stood."""
    args, batches = run.args, len(run.loaders["train"])
    optimization = Optimization(data_parallel(run.model), run.config, run.dtype, args.accum, batches)
    losses = Losses(args.skip_nonfinite, args.accum, scaled=run.dtype == torch.float16)
    state = State(run.folder, settings(run.task.name, args, run.config), run.model, optimization, losses)
    state.resume(args.resume, args.resume_anyway)
    return state


def train_one_epoch(run: Run, state: State) -> dict[str, float]:
    """Trains from where the epoch stands to its end, and saves there, every --save_steps and before it leaves early.

    Returns:
        The mean of every loss over batches and processes.

    Raises:
        NonFinite: too many losses or gradients were infinite or not a number.
        Interrupted: a signal came.
    """
    task, loader, device = run.task, run.loaders["train"], device_of(run.model)
    optimization, progress, losses, batches = state.optimization, state.progress, state.losses, len(loader)
    epoch, temperature = progress.epoch, progress.temperature
    loader.batch_sampler.set_epoch(epoch, progress.step)
    run.model.train()
    for step, batch in enumerate(progress_bar(loader, f"epoch {epoch}"), progress.step):
        optimization.schedule(epoch, step)
        state.bad_images.update(batch["bad_images"])
        samples, batch = batch["index"], to_device(batch, device)
        with optimization.accumulate(step):
            with autocast(run.dtype, device):
                parts = task.losses(optimization.model, batch, temperature, progress=epoch + step / batches)
                total = sum(task.loss_weights[name] * loss for name, loss in parts.items())
            skipped = optimization.step(total, step)
        losses.add(step, parts, skipped, samples)
        if optimization.steps_after(step):
            progress.step = step + 1
            look_up(run, state, batches)
    return losses.finish_epoch()


def count_bad_images(met: Counter) -> int:
    """How many bad images all processes met in an epoch and went on without; logs the first ten and begins anew."""
    total = sum(all_gather_objects(met), Counter())
    met.clear()
    if total:
        logger.warning("%d bad images, %d different, were replaced by others:", total.total(), len(total))
        for fault, times in sorted(total.items())[:10]:
            logger.warning("  %s (%d times)", fault, times)
    return total.total()


def look_up(run: Run, state: State, batches: int) -> None:
    """Between two steps: reads the losses, prints and saves when it is time, and leaves if a signal came."""
    args, (epoch, step, temperature, _) = run.args, astuple(state.progress)
    end, leaving = step == batches, on_any_process(run.interruption.status > 0)
    printing = end or step % run.config["print_freq"] < args.accum
    saving = end or leaving or (args.save_steps and step // args.accum % args.save_steps == 0)
    if printing or saving:
        try:
            state.losses.read(f"epoch {epoch}, T {temperature:.4g}")
        except NonFinite:
            state.save()
            raise
    if printing:
        rate = state.optimization.rate
        logger.info("epoch %d  step %d/%d  %s  lr %.3g", epoch, step, batches, state.losses, rate)
    if saving:
        state.save()
    if leaving:
        logger.info("stopped at step %d of epoch %d; --resume goes on from there", step, epoch)
        run.interruption.leave()


def evaluate(run: Run, split: str, temperature: float) -> dict:
    """Metrics and cost of a split at a temperature."""
    with run.inference() as model:
        metrics = run.task.evaluate(model, run.loaders[split], temperature)
    logger.info("%s at T %.4g: %s", split, temperature, output.readable(metrics))
    return metrics


def evaluate_only(run: Run) -> None:
    """What --evaluate does: scores the checkpoint at its own temperature and writes results and `evaluate.txt`."""
    args, temperature = run.args, run.args.temperature
    if temperature is None:
        temperature = run.stored.temperature if args.p > 0 else 0.0
    prunes = run.stored._replace(temperature=temperature, keep=run.config["keep"])
    if note := prunes.other_company(run.config["batch_size_test"]):
        logger.warning(note)
    metrics = {split: evaluate(run, split, temperature) for split in run.loaders}
    record = {"checkpoint": run.config["pretrained"], "temperature": temperature, "keep": run.config["keep"]}
    record |= output.flatten(metrics, run.selection)
    if is_main():
        write_atomic(run.folder / "evaluate.txt", json.dumps(record) + "\n")
        for split, scores in metrics.items():
            if "results" in scores:
                output.write_results(run.folder, run.task.result_file(split), scores["results"])


def choose_controller(task: Task, args: Namespace, config: dict) -> Controller:
    """What decides the temperature: the user, nothing (p 0), the released ladder or the closed loop."""
    if args.temperature is not None:
        return Fixed(args.temperature)
    if args.p == 0:
        return Fixed(0.0)
    if args.controller == "ladder":
        return Ladder(args.p, RECIPES[task.recipe])
    return ClosedLoop(args.p, config["max_epoch"], config["ramp"], config["cost_slack"])


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


def qualified_score(run: Run, final: float | None, metrics: dict) -> float:
    """The task's score, or -inf for a model that costs more than the final target and its slack."""
    if final is not None and metrics["percent"] > 100 * (final + run.config["cost_slack"]):
        return -math.inf
    return run.task.score(metrics)


def announce(run: Run, controller: Controller, progress: Progress) -> None:
    """Says what is about to happen, and makes the log end where the run goes on."""
    batch, processes, accum = run.config["batch_size_train"], world_size(), run.args.accum
    sizes = ", ".join(f"{len(loader.dataset)} {split}" for split, loader in run.loaders.items())
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    logger.info("%s: %s samples; %.1f M parameters", run.task.name, sizes, parameters / 1e6)
    logger.info(
        "effective batch %d = %d x %d processes x %d accumulated", batch * processes * accum, batch, processes, accum
    )
    logger.info("%s; the best checkpoint is chosen on %s", controller, run.selection)
    if progress.epoch or progress.step:
        logger.info("resuming at epoch %d, step %d", progress.epoch, progress.step)
    if is_main():
        output.start_log(run.folder, progress.epoch)


def prepare(task: Task, args: Namespace, config: dict) -> Run:
    """Reads data and model; whatever the user has to mend shows here, before anything is trained."""
    from data import create_loader  # only now, so that --help and a wrong flag are answered at once

    if args.evaluate and not config["pretrained"]:
        raise UserError("--evaluate has no checkpoint to evaluate; name it with --pretrained")
    folder, processes = Path(args.output_dir), world_size()
    task.config = config
    if args.download and is_main():
        task.download(config["pretrained"])
    set_seed(args.seed, args.deterministic)
    loaders = {}
    for split, dataset in zip(("train", "val", "test"), task.datasets(args.evaluate), strict=True):
        if dataset is not None:
            train = split == "train"
            size = config["batch_size_train" if train else "batch_size_test"]
            options = {"steps": config["epoch_steps"], "replace": args.bad_images == "skip"}
            loaders[split] = create_loader(
                dataset, size, train, args.seed, args.num_workers, rank(), processes, **options
            )
    device = torch.device(args.device)
    barrier()  # all wait for what is being downloaded
    stored = task.stored(config["pretrained"]) if args.evaluate else Stored()
    if args.evaluate:  # a model is scored by the rule that it was trained with, unless --keep says otherwise
        config["keep"] = args.keep or stored.keep
    model = task.build_model(config, args.evaluate).to(device)
    set_seed(args.seed + rank())  # the weights are drawn alike, dropout is not
    return Run(task, args, config, folder, model, loaders, precision(args.amp, device), stored)


def execute(task: Task, args: Namespace, config: dict) -> None:
    """Runs a task with a checked configuration, its output folder ready and its log open."""
    folder = prepare_output(args.output_dir)
    logging_elsewhere = scalars.writing(folder, config, args.tensorboard, args.wandb)
    with output.logging_to(folder), Interruption() as interruption, logging_elsewhere as write_scalars:
        run = prepare(task, args, config)
        run.interruption, run.write_scalars = interruption, write_scalars
        if is_main() and not (args.evaluate and (folder / "config.yaml").exists()):  # a run's own stay
            output.write_environment(folder)
            configuration.write(config, folder / "config.yaml")
        (evaluate_only if args.evaluate else compress)(run)


def main(task: Task, argv: list[str] | None = None) -> int:
    """Runs a task from the command line.

    Returns:
        The exit status: 0, 2 after one line that says what the user has to mend, 130 or 143 after a signal.
    """
    status = 0
    try:
        args, config = parse(argv, task)
        init_distributed(args)
        execute(task, args, config)
    except Interrupted as signal:
        status = signal.status
    except UserError as error:
        if isinstance(error, RatioOutOfReach) and task.floor:
            error = UserError(f"{error}; {task.floor}")
        who = f"error (process {rank()})" if rank() else "error"
        print(f"{who}: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    leave_distributed(together=status == 0)
    return status
