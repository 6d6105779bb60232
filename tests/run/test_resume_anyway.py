"""A run that goes on under other settings obeys them from its first step, and chooses its best checkpoint by them."""

import json

import pytest
import torch

from madtp.run.optimization import Optimization
from madtp.shared.weights import checkpoint
from tests.processes import run
from tests.run.test_resume import Mortal, flags  # noqa: F401 - a fixture
from tests.toy import Toy


class Noting(Toy):
    """Notes the temperature of every step and, in the end, what its optimizer goes by."""

    def __init__(self, file):
        self.file = file

    def losses(self, model, batch, temperature, progress):
        with open(self.file, "a") as file:
            file.write(f"{temperature}\n")
        return super().losses(model, batch, temperature, progress)

    def temperatures(self):
        return [float(line) for line in self.file.read_text().split()]


class Fading(Noting):
    """Scores worse from epoch to epoch."""

    def score(self, metrics):
        return metrics["percent"]


@pytest.mark.parametrize("change", [["--p", 0.2], ["--temperature", 3.5], ["--keep", "sample"]])
def test_within_an_epoch_another_amount_counts_at_once(flags, tmp_path, change):  # noqa: F811
    assert run(Mortal("batch", 9), flags=flags("out")) == [-9]
    stopped = checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")
    assert stopped["step"] == 2
    task = Noting(tmp_path / "noted")
    assert run(task, flags=flags("out", 1, "--resume", "--resume_anyway", *change)) == [0]
    first, *_ = task.temperatures()
    if change[0] == "--temperature":
        assert set(task.temperatures()) == {3.5}
    elif change[0] == "--p":
        assert first < 0.7 * stopped["temperature"]
    else:
        assert first == pytest.approx(stopped["temperature"], rel=0.1), "the toy keeps alike by any rule"


def test_training_longer_changes_neither_the_amount_nor_the_best(flags, tmp_path):  # noqa: F811
    task = Fading(tmp_path / "noted")
    assert run(task, flags=flags("out")) == [0]
    before = checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")
    assert run(task, flags=flags("out", 1, "--resume", "--resume_anyway", "--epoch", 4)) == [0]
    after = checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")
    assert after["epoch"] == 4 and after["best"] >= before["best"]


def test_the_best_of_another_cost_does_not_stand_in_the_way(flags, tmp_path):  # noqa: F811
    task = Fading(tmp_path / "noted")  # dearer models score higher
    assert run(task, flags=flags("out", 1, "--p", 0.2)) == [0]
    more = ["--resume", "--resume_anyway", "--epoch", 5, "--p", 0.45]
    assert run(task, flags=flags("out", 1, *more)) == [0]
    best = checkpoint.read(flags.folder / "out" / "checkpoint_best.pth")
    assert best["epoch"] >= 3 and best["metrics"]["percent"] < 60
    records = [json.loads(line) for line in (flags.folder / "out" / "log.txt").read_text().splitlines()]
    assert any(record["best"] for record in records[3:])
    log = (flags.folder / "out" / "train.log").read_text()
    assert "the best checkpoint is chosen anew" in log


def test_weight_decay_and_betas_are_those_of_the_configuration():
    def optimization(decay, betas):
        model = torch.nn.Linear(3, 2)
        config = {"init_lr": 0.1, "weight_decay": decay, "betas": betas, "clip_grad": 0.0}
        return Optimization(model, config, torch.float32, accum=1, batches=1)

    before, after = optimization(0.05, [0.9, 0.999]), optimization(0.9, [0.5, 0.6])
    before.step(before.model(torch.ones(1, 3)).sum(), 0)
    after.load_state_dict(before.state_dict())
    (group,) = after.optimizer.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.9, (0.5, 0.6))
    assert after.optimizer.state_dict()["state"][0]["step"] == 1, "its means go on"
