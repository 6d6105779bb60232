"""A run that goes on under other settings obeys them from its first step, and chooses its best checkpoint by them."""

import json
import math

import pytest
import torch

from madtp.run.optimization import Optimization
from madtp.run.resume import Progress, under_other_settings
from madtp.shared.weights import checkpoint
from tests.processes import run
from tests.run.test_resume import Mortal, flags  # noqa: F401 - a fixture
from tests.toy import Toy


class Noting(Toy):
    """Notes the temperature of every step."""

    def __init__(self, file):
        self.file = file

    def losses(self, model, batch, temperature, progress):
        with open(self.file, "a") as file:
            file.write(f"{temperature}\n")
        return super().losses(model, batch, temperature, progress)

    def temperatures(self):
        return [float(line) for line in self.file.read_text().split()]


class Dear(Noting):
    """The dearer, the better."""

    def score(self, metrics):
        return metrics["percent"]


class Fading(Noting):
    """Scores worse the longer it is trained."""

    def score(self, metrics):
        return -len(self.temperatures())


@pytest.mark.parametrize("change", [["--p", 0.2], ["--temperature", 3.5]])
def test_within_an_epoch_another_amount_counts_at_once(flags, tmp_path, change):  # noqa: F811
    assert run(Mortal("batch", 9), flags=flags("out")) == [-9]
    stopped = checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")
    assert stopped["step"] == 2
    task = Noting(tmp_path / "noted")
    assert run(task, flags=flags("out", 1, "--resume", "--resume_anyway", *change)) == [0]
    first, *_ = task.temperatures()
    if change[0] == "--temperature":
        assert set(task.temperatures()) == {3.5}
    else:
        assert first < 0.7 * stopped["temperature"]


def test_training_longer_changes_neither_the_amount_nor_the_best(flags, tmp_path):  # noqa: F811
    task = Fading(tmp_path / "noted")
    assert run(task, flags=flags("out", 1, "--set", "ramp=0")) == [0]
    before = checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")
    best = checkpoint.read(flags.folder / "out" / "checkpoint_best.pth")
    more = ["--set", "ramp=0", "--resume", "--resume_anyway", "--epoch", 4]
    assert run(task, flags=flags("out", 1, *more)) == [0]
    after = checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")
    assert after["epoch"] == 4 and after["best"] == before["best"]
    assert checkpoint.read(flags.folder / "out" / "checkpoint_best.pth")["epoch"] == best["epoch"]
    assert task.temperatures()[18] == pytest.approx(before["temperature"], rel=0.2)


def test_the_best_of_another_cost_does_not_stand_in_the_way(flags, tmp_path):  # noqa: F811
    task = Dear(tmp_path / "noted")
    assert run(task, flags=flags("out", 1, "--p", 0.2)) == [0]
    more = ["--resume", "--resume_anyway", "--epoch", 5, "--p", 0.45]
    assert run(task, flags=flags("out", 1, *more)) == [0]
    best = checkpoint.read(flags.folder / "out" / "checkpoint_best.pth")
    assert best["epoch"] >= 3 and best["metrics"]["percent"] < 60
    records = [json.loads(line) for line in (flags.folder / "out" / "log.txt").read_text().splitlines()]
    assert any(record["best"] for record in records[3:])
    log = (flags.folder / "out" / "train.log").read_text()
    assert "another --p: from here on the best checkpoint is chosen anew" in log


def test_where_no_epoch_is_left_the_best_stays_and_nothing_else_is_said(flags, tmp_path):  # noqa: F811
    task = Dear(tmp_path / "noted")
    assert run(task, flags=flags("out")) == [0]
    best = (flags.folder / "out" / "checkpoint_best.pth").read_bytes()
    assert run(task, flags=flags("out", 1, "--resume", "--resume_anyway", "--p", 0.2)) == [0]
    assert (flags.folder / "out" / "checkpoint_best.pth").read_bytes() == best
    assert "no epoch came within" not in (flags.folder / "out" / "train.log").read_text()


OWN = Progress(3, 2, 7.0, 0.9, 1.5)
ANEW, ONLY_BEST = Progress(3, 2, None, -math.inf, None), Progress(3, 2, 7.0, -math.inf, 1.5)


@pytest.mark.parametrize(
    "names, temperature, controller, left",
    [
        (["max_epoch", "init_lr", "processes"], None, "auto", OWN),
        (["--p"], None, "auto", ANEW),
        (["keep", "max_epoch"], None, "auto", ANEW),
        (["shape"], None, "auto", ANEW),
        (["keep_norm"], None, "auto", ANEW),
        (["cost_slack"], None, "auto", ONLY_BEST),
        (["--p"], None, "ladder", ONLY_BEST),
        (["keep"], None, "ladder", ONLY_BEST),
        (["--controller"], None, "ladder", ANEW),
        (["--temperature"], 3.0, "auto", ANEW),
        (["--p", "cost_slack"], 3.0, "auto", OWN),
        (["--p", "keep"], 3.0, "auto", ANEW),
    ],
)
def test_what_stays_of_a_progress(names, temperature, controller, left):
    settings = {"--temperature": temperature, "--controller": controller}
    assert under_other_settings(OWN, names, settings) == left


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
