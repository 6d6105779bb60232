"""What TensorBoard and Weights & Biases are told is what the log says."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from madtp.run import scalars
from madtp.run.engine import main
from tests.toy import Toy

TOY = "{batch_size_train: 8, batch_size_test: 8, max_epoch: 2, init_lr: 0.05, calibration_batches: 3}"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY)
    common = ["--config", str(tmp_path / "toy.yaml"), "--device", "cpu", "--p", "0.3", "--num_workers", "0"]

    def run(*flags):
        folder = tmp_path / "out"
        status = main(Toy(), [*common, "--output_dir", str(folder), *flags])
        log = folder / "log.txt"
        return status, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return run


def test_names_and_numbers():
    record = {
        "epoch": 3,
        "train_loss_task": 0.5,
        "val_accuracy": 71,
        "percent": 50.5,
        "temperature": 12.0,
        "target": None,
        "keep": "batch",
        "tokens": {"image": [40, 20.5]},
        "test_tokens": {"text": [7]},
        "val_samples_per_second": 9.0,
    }
    assert scalars.scalars(record) == {
        "epoch": 3,
        "train/loss_task": 0.5,
        "val/accuracy": 71,
        "percent": 50.5,
        "temperature": 12.0,
        "tokens/image/1": 40,
        "tokens/image/2": 20.5,
        "test/tokens/text/1": 7,
        "val/samples_per_second": 9.0,
    }


def test_tensorboard_reads_what_the_log_says(run, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    status, records = run("--tensorboard", "--epoch", "1")
    status, records = run("--tensorboard", "--resume", "--resume_anyway")
    assert status == 0 and len(records) == 2
    events = reader.EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    for name in ("train/loss_task", "val/accuracy", "percent", "temperature", "tokens/image/1"):
        told = {event.step: event.value for event in events.Scalars(name)}
        assert told == pytest.approx({record["epoch"]: scalars.scalars(record)[name] for record in records}), name


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, which keeps what it is told."""
    module, told = ModuleType("wandb"), []
    module.Error = RuntimeError
    module.__spec__ = SimpleNamespace()
    finish = lambda: told.append("finished")  # noqa: E731
    log = lambda numbers, step: told.append((step, numbers))  # noqa: E731
    module.init = lambda **how: told.append(how) or SimpleNamespace(log=log, finish=finish)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module, told


def test_wandb_is_told_what_the_log_says(run, wandb, tmp_path):
    _, told = wandb
    status, records = run("--wandb")
    begun, *epochs, end = told
    assert status == 0 and end == "finished" and begun["name"] == "out" and begun["config"]["max_epoch"] == 2
    assert epochs == [(record["epoch"], scalars.scalars(record)) for record in records]


def test_wandb_that_does_not_begin_is_one_line(run, wandb, capsys):
    def init(**how):
        raise RuntimeError("no API key")

    wandb[0].init = init
    assert run("--wandb")[0] == 2
    assert "error: --wandb: no API key; log in with `wandb login`, or set WANDB_MODE=offline" in capsys.readouterr().err


def test_absent_packages_are_named(run, capsys, monkeypatch):
    monkeypatch.setattr(scalars, "find_spec", lambda name: None)
    for flag in ("tensorboard", "wandb"):
        assert run(f"--{flag}")[0] == 2
        assert f"error: --{flag}: the package {flag} is not installed; python -m pip install {flag}" in (
            capsys.readouterr().err
        )
