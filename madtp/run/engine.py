"""The engine of all tasks: `main`, the loop that compresses a model, an epoch of training, evaluation."""

import json
import logging
import math
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from functools import partial

from madtp.cost.measure import device_of, to_device
from madtp.cost.processes import (
    all_gather_objects,
    is_main,
    on_any_process,
    rank,
    world_size,
)
from madtp.cost.temperature import FIRST_TEMPERATURE, RatioOutOfReach, calibrate
from madtp.method.errors import UserError, as_user_error
from madtp.method.rules import BATCH, COVERAGE, knob
from madtp.run import config as configuration
from madtp.run import output, scalars
from madtp.run.flags import parse
from madtp.run.folder import owned
from madtp.run.interruption import Interrupted, Interruption
from madtp.run.losses import NonFinite
from madtp.run.precision import autocast
from madtp.run.preparation import Run, begin, prepare
from madtp.run.resume import Progress, State
from madtp.run.schedule import settle_shape
from madtp.run.task import Task
from madtp.shared.files import prepare_output, print_any_text, stop_printing, write_atomic
from madtp.shared.launch import init_distributed, leave_distributed
from madtp.shared.run_files import BEST, CONFIG, EVALUATION
from madtp.shared.weights import architecture, checkpoint

__all__ = ["Run", "Task", "compress", "evaluate", "main", "prepare", "train_one_epoch"]

BATCH_GRACE = 20.0  # seconds that a batch gets after a signal; launchers kill after 30

logger = logging.getLogger(__name__)


def main(task: Task, argv: list[str] | None = None) -> int:
    """Runs a task from the command line.

    Returns:
        The exit status: 0, 2 after one line that says what the user has to mend, 129, 130 or 143 after a signal.
    """
    print_any_text()
    status = 0
    try:
        with Interruption() as interruption:
            args, config = parse(argv, task)
            with interruption.at_once():
                init_distributed(args)
            execute(task, args, config, interruption)
    except Interrupted as signal:
        status = signal.status
    except Exception as error:
        if (fault := as_user_error(error)) is None:
            raise
        if isinstance(fault, RatioOutOfReach):
            company = "smaller batches help (the sample that needs most decides for its batch)"
            ways_out = [company] * (config["keep"] == BATCH) + [task.floor] * bool(task.floor)
            fault = UserError("; ".join([str(fault), *ways_out]))
        who = f"error (process {rank()})" if rank() else "error"
        print(f"{who}: {' '.join(str(fault).split())}", file=sys.stderr)
        if isinstance(error, OSError):  # it may be the output that is full
            stop_printing()
        status = 2
    leave_distributed(together=status == 0)
    return status


def execute(task: Task, args: Namespace, config: dict, interruption: Interruption) -> None:
    """Runs a task with a checked configuration, its output folder ready and its log open."""
    folder = prepare_output(args.output_dir)
    logging_elsewhere = scalars.writing(folder, config, args.tensorboard, args.wandb)
    from data.workers import supervised  # only now, so that --help and a wrong flag are answered at once

    with owned(folder, args), output.logging_to(folder), supervised(), logging_elsewhere as write_scalars:
        run = prepare(task, args, config)
        run.interruption, run.write_scalars = interruption, write_scalars
        (evaluate_only if args.evaluate else compress)(run)


def write_settings(run: Run) -> None:
    """Writes what the run is, once nothing stands against it: until then the folder tells of the one before."""
    if is_main():
        output.write_environment(run.folder, device_of(run.model))
        configuration.write(run.config, run.folder / CONFIG)


def compress(run: Run) -> None:
    """The epoch loop: find the temperature, train, find it again for the weights that moved, evaluate, save."""
    epochs = run.config["max_epoch"]
    controller, state = begin(run)
    write_settings(run)
    sample = run.calibration_sample()
    state.progress.shape = settle_shape(run, sample, controller.target(epochs - 1), state.progress.shape)

    def cost(temperature: float) -> float:
        with run.inference() as inferring:
            return sample.cost(run.task, inferring, temperature)

    first = state.progress.epoch
    for epoch in range(first, epochs):
        started = time.perf_counter()
        if state.progress.step == 0 or state.progress.temperature is None:  # else it was resumed within the epoch
            state.progress.temperature = controller.before_epoch(cost, epoch, state.progress.temperature)
        with run.interruption.postponed():
            losses = train_one_epoch(run, state)
        temperature = controller.after_epoch(cost, epoch, state.progress.temperature)
        metrics = {split: evaluate(run, split, temperature) for split in run.scored_splits}
        score = qualified_score(run, controller.target(epochs - 1), metrics[run.selection])
        best = -math.inf < score >= state.progress.best
        state.progress = Progress(
            epoch + 1, 0, temperature, score if best else state.progress.best, state.progress.shape
        )
        record = {
            "epoch": epoch,
            **{f"train_{name}": loss for name, loss in losses.items()},
            **output.flatten(metrics, run.selection),
            "target": output.percent(controller.target(epoch)),
            "temperature": temperature,
            **run.rule,
            "lr": state.optimization.rate,
            "skipped": state.losses.skipped,
            "bad_images": count_bad_images(state.bad_images),
            "seconds": time.perf_counter() - started,
            "best": best,
        }
        write_epoch(run, record)
        state.save()
    if state.progress.best == -math.inf and state.progress.epoch > first:
        left = f"{BEST} is still that of the settings before" if (run.folder / BEST).exists() else f"there is no {BEST}"
        logger.warning("no epoch came within cost_slack of p %g: %s", run.args.p, left)


def write_epoch(run: Run, record: dict) -> None:
    """Logs an epoch, and keeps its model where it is the best."""
    if not is_main():
        return
    output.log_epoch(run.folder, record)
    run.write_scalars(record)
    if record["best"]:
        entries = {"epoch": record["epoch"], "temperature": record["temperature"]}
        entries |= {**run.rule, "batch_size": run.config["batch_size_test"], **architecture.entry(run.model)}
        checkpoint.save(run.folder / BEST, model=run.model.state_dict(), **entries, metrics=record)


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
    weights = task.weights
    loader.batch_sampler.set_epoch(epoch, progress.step)
    run.model.train()
    for step, batch in enumerate(awaited(run, state, output.progress_bar(loader, f"epoch {epoch}")), progress.step):
        optimization.schedule(epoch, step)
        state.bad_images.update(batch["bad_images"])
        samples, batch = batch["index"], to_device(batch, device)
        with optimization.accumulate(step):
            with autocast(run.dtype, device):
                parts = task.losses(optimization.model, batch, temperature, progress=epoch + step / batches)
                total = sum(weights[name] * loss for name, loss in parts.items())
            skipped = optimization.step(total, step)
        losses.add(step, parts, skipped, samples, optimization.gradients)
        if optimization.steps_after(step):
            progress.step = step + 1
            look_up(run, state, batches)
    return losses.finish_epoch()


def awaited(run: Run, state: State, batches: Iterable[dict]) -> Iterator[dict]:
    """The batches of an epoch from where it stands; a signal does not wait for ever for one that may never come.

    Between two steps of one process there is nothing to wait for. Otherwise the step gets the time to be finished, for
    others are in it or its gradient is incomplete; if it is not, what was saved before stays.
    """
    batches, taken, progress = iter(batches), state.progress.step, state.progress
    while True:
        between = world_size() == 1 and taken == progress.step
        try:
            with run.interruption.awaiting(0.0 if between else BATCH_GRACE):
                batch = next(batches, None)
        except Interrupted:
            if between and taken:
                look_up(run, state, len(run.loaders["train"]))
            logger.info("stopped while waiting for a batch; --resume goes on from the last checkpoint, if there is one")
            raise
        if batch is None:
            return
        taken += 1
        yield batch


def look_up(run: Run, state: State, batches: int) -> None:
    """Between two steps: reads the losses, prints and saves when it is time, and leaves if a signal came."""
    args, (epoch, step, temperature, *_) = run.args, astuple(state.progress)
    end, leaving = step == batches, on_any_process(run.interruption.status > 0)
    printing = end or step % run.config["print_freq"] < args.accum
    saving = end or leaving or (args.save_steps and step // args.accum % args.save_steps == 0)
    if printing or saving:
        try:
            state.losses.read(f"epoch {epoch}, {run.pruned_at(temperature)}")
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


def count_bad_images(met: Counter) -> int:
    """How many bad images all processes met in an epoch and went on without; logs the first ten and begins anew."""
    total = sum(all_gather_objects(met), Counter())
    met.clear()
    if total:
        logger.warning("%d bad images, %d different, were replaced by others:", total.total(), len(total))
        for fault, times in sorted(total.items())[:10]:
            logger.warning("  %s (%d times)", fault, times)
    return total.total()


def evaluate(run: Run, split: str, temperature: float) -> dict:
    """Metrics and cost of a split at a temperature."""
    with run.inference() as model:
        metrics = run.task.evaluate(model, run.loaders[split], temperature)
    logger.info("%s at %s: %s", split, run.pruned_at(temperature), output.readable(metrics))
    return metrics


def qualified_score(run: Run, final: float | None, metrics: dict) -> float:
    """The task's score, or -inf for a model that costs more than the final target and its slack."""
    if final is not None and metrics["percent"] > 100 * (final + run.config["cost_slack"]):
        return -math.inf
    return run.task.score(metrics)


def temperature_to_score(run: Run) -> float:
    """The user's own temperature or the checkpoint's; that which removes p where coverage is tried on another model."""
    args, stored = run.args, run.stored
    if args.temperature is not None or args.p == 0:
        return args.temperature or 0.0
    if run.config["keep"] != COVERAGE or stored.prunes_by(COVERAGE):
        own = run.pruned_at(stored.temperature)
        logger.info("scored at the checkpoint's own %s; --p does not change it, --temperature does", own)
        if note := stored.other_rule(run.config["keep"]):
            logger.warning(note)
        return stored.temperature
    logger.info("this model was not pruned by coverage: p %g is looked for; --p 0 scores it as it is", args.p)
    sample = run.calibration_sample()
    settle_shape(run, sample, 1 - args.p, None)
    with run.inference() as model:
        return calibrate(partial(sample.cost, run.task, model), 1 - args.p, FIRST_TEMPERATURE, knob=knob(COVERAGE))


def evaluate_only(run: Run) -> None:
    """What --evaluate does: scores the checkpoint at its own temperature and writes results and `evaluate.txt`."""
    if not (run.folder / CONFIG).exists():  # that of the run whose folder this is stays
        write_settings(run)
    temperature = temperature_to_score(run)
    prunes = run.stored._replace(temperature=temperature, keep=run.config["keep"])
    if note := prunes.other_company(run.config["batch_size_test"]):
        logger.warning(note)
    metrics = {split: evaluate(run, split, temperature) for split in run.loaders}
    record = {"checkpoint": run.config["pretrained"], "temperature": temperature, **run.rule}
    record |= output.flatten(metrics, run.selection)
    if is_main():
        write_atomic(run.folder / EVALUATION, json.dumps(record) + "\n")
        for split, scores in metrics.items():
            if "results" in scores:
                output.write_results(run.folder, run.task.result_file(split), scores["results"])
