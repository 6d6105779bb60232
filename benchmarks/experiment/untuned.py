"""Scores methods on the dense models as they are: no step of training, on validation, where choices are made.

A schedule's shape is searched for without labels, on validation batches; the amount by the cost of what is scored. In
the end the test split is scored, by the shapes that were found.
"""

import torch

from benchmarks.experiment.cells import BATCH, Cell, Places
from benchmarks.experiment.running import PRECISION, STEERING, cost_on, prepared, schedule, scored, scored_loader
from madtp.cost.temperature import RatioOutOfReach, calibrate
from madtp.run.engine import Run
from utils import UserError

SEARCHED = "val"


def score(cell: Cell, places: Places, split: str = SEARCHED, shape: float | None = None) -> dict:
    """The dense model, or a method at the cost 1 - p of it.

    Args:
        cell: what is scored.
        places: of data and checkpoints.
        split: what is scored on.
        shape: of the schedule, where it was found before.

    Raises:
        UserError: nobody has trained the dense model yet.
    """
    dense = places.checkpoint(Cell(cell.task, cell.seed))
    if not dense.exists():
        raise UserError(f"{dense} is not there: run `{Cell(cell.task, cell.seed).command}` first")
    run = prepared(cell, places)
    run.model.load_state_dict(torch.load(dense, weights_only=True)["model"])
    if not cell.p:
        return {"untuned": scored(run, 0.0, split=split)}
    try:
        return {**schedule(run, SEARCHED, 1 - cell.p, shape), **at_cost(run, 1 - cell.p, split)}
    except RatioOutOfReach as error:
        return {"out_of_reach": str(error)}


def at_cost(run: Run, share: float, split: str) -> dict:
    """The temperature or amount at which what is scored costs this share of dense, and the score there."""
    temperature = calibrate(cost_on(run, run.loaders[SEARCHED], STEERING), share, 1.0)
    cost = cost_on(run, scored_loader(run, BATCH, split))
    temperature = calibrate(cost, share, temperature, tolerance=PRECISION * share)
    return {"temperature": temperature, "untuned": scored(run, temperature, split=split)}
