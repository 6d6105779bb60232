"""Runs one cell of the experiment: trains a dense model, or fine-tunes a method from it, and scores it.

Everything is the engine's own: tasks, training, calibration, evaluation. A cell changes the rule of keeping tokens and
nothing else.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.comparison.costs import charged, overhead
from benchmarks.comparison.methods import MADTP, METHODS, TOWERS, WHOLE, Method, always
from benchmarks.comparison.rules import Listening, by_tower
from benchmarks.experiment.cells import BATCH, EPOCHS, Cell, Places
from benchmarks.experiment.ledger import ABLATED_AT
from compress_caption_dtp import Caption
from compress_nlvr_dtp import NLVR
from compress_vqa_dtp import VQA
from data import create_loader
from madtp.__main__ import main as command
from madtp.cost import flops
from madtp.cost.measure import CalibrationSample
from madtp.cost.temperature import ClosedLoop, RatioOutOfReach, calibrate
from madtp.cost.trace import Trace
from madtp.run import engine
from madtp.run.engine import Run, Task
from madtp.run.flags import parse
from madtp.run.losses import Losses
from madtp.run.optimization import Optimization
from madtp.run.resume import Progress, State
from madtp.run.schedule import find_shape, set_shape
from utils import UserError, set_seed

TASKS = {"nlvr": NLVR, "vqa": VQA, "caption": Caption}
IMAGES = {"nlvr": 2, "vqa": 1, "caption": 1}  # of a sample
SCORED = {"nlvr": "test", "vqa": "val", "caption": "test"}  # by models that were fine-tuned
SCORE = {"nlvr": "accuracy", "vqa": "accuracy", "caption": "exact_match"}
DATA = ("--train", "6000", "--val", "512", "--test", "1000", "--pairs", "15000", "--objects", "3", "--grid", "7")
BATCHES = (1, 8, 64)  # that both rules are also scored in
STEERING = 6  # validation batches on which costs are measured during fine-tuning
PRECISION = 0.008  # of the cost asked for, where a model is scored
OTHER_RULE = {"madtp": "sample", "sample": "madtp", "image": "sample_image", "sample_image": "image"}
FACTORS = (0.5, 0.71, 1.41, 2.0, math.inf)  # of the temperature, when it is changed after training


class Unsaved(State):
    """A run that is too short to be resumed."""

    def save(self) -> None:
        """Writes nothing."""


def prepared(cell: Cell, places: Places) -> Run:
    """Data and model of a cell, the method in place."""
    task = compared(TASKS[cell.task])()
    args, config = parse(places.arguments(cell), task)
    task.method = METHODS.get(cell.method)
    return engine.prepare(task, args, config)


def compared(task_class: type[Task]) -> type[Task]:
    """The task with a model that keeps tokens by `method`, at the cost that `method` has."""

    class Compared(task_class):
        method: Method | None = None

        def build_model(self, config: dict, evaluate: bool) -> nn.Module:
            model = super().build_model(config, evaluate)
            if self.method is not None:
                model.keep = self.method.keep
                if self.method.learnable:
                    model.space_dict = nn.Parameter(torch.randn(self.method.learnable, config["sd_dim"]))
            return model

        def losses(self, *inputs, **named) -> dict:
            losses = super().losses(*inputs, **named)
            return losses if self.method.similarity else {"loss_task": losses["loss_task"]}

        def cost(self, model: nn.Module, trace: Trace):
            if self.method is None:
                return super().cost(model, trace)
            cost = super().cost(model, charged(trace, self.method.guided))
            if self.method.merger is None:
                return cost
            return cost + IMAGES[self.name] * overhead(trace, self.method.merger, model.visual_encoder) / flops.GIGA

    return Compared


def train_dense(cell: Cell, places: Places) -> dict:
    """Trains a dense model by the task's own script, after the data where there is none, and scores it."""
    data = places.data / str(cell.seed)
    if command(["demo_data", "--out", str(data), "--seed", str(cell.seed), *DATA]):
        raise UserError(f"there is no data in {data}")
    arguments = [*places.arguments(cell), "--resume", "--save_steps", "100"]
    if status := engine.main(TASKS[cell.task](), arguments):
        raise SystemExit(status)
    run = prepared(cell, places)
    run.model.load_state_dict(torch.load(places.checkpoint(cell), weights_only=True)["model"])
    return {"scores": {str(BATCH): scored(run, 0.0)}}


def compare(cell: Cell, places: Places) -> dict:
    """Scores a method at the cost 1 - p of dense: as it is, and after some steps of fine-tuning."""
    run = prepared(cell, places)
    steering, final = cost_on(run, run.loaders["val"], STEERING), cost_on(run, scored_loader(run, BATCH))
    loop = ClosedLoop(cell.p, EPOCHS, ramp=0.0, slack=run.config["cost_slack"])
    find = partial(calibrate, final, 1 - cell.p, tolerance=PRECISION * (1 - cell.p), slack=loop.slack)
    try:
        shape = schedule(run, "val", 1 - cell.p)
        temperature = loop.before_epoch(steering, 0, None)
        untuned = scored(run, find(temperature))
        state = begin(run)
        for epoch in range(EPOCHS):
            temperature = loop.before_epoch(steering, epoch, temperature)
            state.progress = Progress(epoch, 0, temperature)
            losses = engine.train_one_epoch(run, state)
        temperature = find(temperature)
    except RatioOutOfReach as error:
        return {"out_of_reach": str(error)}
    results = {**shape, "temperature": temperature, "steps": EPOCHS * cell.epoch_steps, "losses": losses}
    results |= {"untuned": untuned, "scores": {str(BATCH): scored(run, temperature)}}
    if cell.method in OTHER_RULE:
        results["scores"] |= {str(batch): scored(run, temperature, batch) for batch in BATCHES}
        run.model.keep = METHODS[OTHER_RULE[cell.method]].keep
        try:
            results["crossed"] = scored(run, find(temperature))
        except RatioOutOfReach as error:
            results["crossed"] = {"out_of_reach": str(error)}
        run.model.keep = METHODS[cell.method].keep
    if cell.method == "madtp" and cell.p == ABLATED_AT:
        results |= changed_afterwards(run, temperature)
    return results


def schedule(run: Run, split: str, share: float, shape: float | None = None) -> dict:
    """Gives a rule that has a schedule its shape at a share of dense: known, or found without labels on a split."""
    if not hasattr(run.model.keep, "shape"):
        return {}
    shape = shape or find_shape(run, CalibrationSample(run.loaders[split], STEERING), share)
    set_shape(run.model, shape)
    return {"shape": shape}


def changed_afterwards(run: Run, temperature: float) -> dict:
    """Scores a trained MADTP at other temperatures, and with one tower alone pruned; measures its alignment."""
    factors = {f"{factor:g}": scored(run, temperature * factor) for factor in FACTORS}
    towers = {}
    for tower in TOWERS:
        run.model.keep = by_tower(*(MADTP if one == tower else WHOLE for one in TOWERS))
        run.task.method = Method(tower, run.model.keep, guided=(tower,))
        towers[tower] = scored(run, temperature)
    return {"factors": factors, "towers": towers, "spreads": image_spreads(run)}


def image_spreads(run: Run) -> list[float]:
    """How widely the inner products with the learnable tokens spread in every layer of an image that stays whole."""
    layout = Listening()
    run.model.keep = by_tower(always(layout), WHOLE)
    cost_on(run, run.loaders["val"], batches=1)(1.0)
    return layout.spreads


def begin(run: Run) -> State:
    """A new run of fine-tuning."""
    optimization = Optimization(run.model, run.config, run.dtype, run.args.accum, len(run.loaders["train"]))
    return Unsaved(run.folder, {}, run.model, optimization, Losses(0, run.args.accum, scaled=False))


def cost_on(run: Run, loader: DataLoader, batches: int = 0) -> Callable[[float], float]:
    """What tells the cost of a temperature on some batches, or all."""
    sample = CalibrationSample(loader, batches or len(loader))

    def cost(temperature: float) -> float:
        set_seed(run.args.seed)  # so that chance, where it decides, decides alike at every temperature
        with run.inference() as model:
            return sample.cost(run.task, model, temperature)

    return cost


def scored(run: Run, temperature: float, batch: int = BATCH, split: str = "") -> dict:
    """The score, cost and speed of evaluating in batches of this size, on the split that the task is scored on."""
    run.loaders["scored"] = scored_loader(run, batch, split)
    metrics = engine.evaluate(run, "scored", temperature)
    names = "gflops percent percent_p10 percent_p90 tokens samples_per_second".split()
    return {"score": metrics[SCORE[run.task.name]], **{name: metrics[name] for name in names}}


def scored_loader(run: Run, batch: int, split: str = "") -> DataLoader:
    """What a task is scored on, in batches of this size; test questions with the answers that models never see."""
    split = split or SCORED[run.task.name]
    dataset = run.loaders[split].dataset.dataset
    if (run.task.name, split) == ("vqa", "test"):
        file = Path(run.config["ann_root"]) / "vqa_test_answers.json"
        dataset = type(dataset)(dataset.transform, [file], run.config)
    return create_loader(dataset, batch, train=False)
