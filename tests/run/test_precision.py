"""Mixed precision: what auto stands for on which processor, that a run keeps it, and that it trains."""

import logging
import os
import signal

import pytest
import torch

from madtp.run import precision
from madtp.run.precision import processor_features, settled
from madtp.shared.weights import checkpoint
from tests.processes import run
from tests.run.test_resume import equal, result
from tests.toy import Toy

CPU = torch.device("cpu")
CONFIG = "{batch_size_train: 8, batch_size_test: 8, max_epoch: 2, init_lr: 0.05, calibration_batches: 3, ramp: 0}"


@pytest.mark.parametrize(
    "flags, amp",
    [
        ("fpu sse2 avx512f avx512_bf16", "bf16"),
        ("fpu amx_bf16 amx_tile", "bf16"),
        ("fpu avx512f amx_tile amx_int8", "off"),
        ("", "off"),
    ],
)
def test_auto_goes_by_the_processors_features(tmp_path, monkeypatch, flags, amp):
    (tmp_path / "cpuinfo").write_text(
        f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    )
    monkeypatch.setattr(precision, "PROCESSOR", tmp_path / "cpuinfo")
    assert processor_features() == set(flags.split())
    assert settled("auto", CPU) == amp and [settled(one, CPU) for one in ("off", "fp16")] == ["off", "fp16"]


def test_a_system_that_does_not_say_is_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "PROCESSOR", tmp_path / "nothing")
    assert settled("auto", CPU) == "off" and precision.precision("auto", CPU) == torch.float32


def test_what_nobody_asked_for_is_said_and_so_is_what_is_slow(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for features, asked, amp, said in (
        (precision.BF16_UNITS, "auto", "bf16", "has a unit; --amp off"),
        (precision.BF16_UNITS, "bf16", "bf16", ""),
        (set(), "bf16", "bf16", "imitates it: --amp off is faster"),
        (set(), "auto", "off", ""),
    ):
        caplog.clear()
        monkeypatch.setattr(precision, "processor_features", lambda features=features: features)
        precision.announce_precision(asked, amp, CPU)
        assert said in caplog.text and bool(said) == bool(caplog.text)


class Seeing(Toy):
    """A toy task that stops itself at some progress and sees what it computes in."""

    def __init__(self, wanted, stop=float("inf")):
        self.wanted, self.stop = wanted, stop

    def losses(self, model, batch, temperature, progress):
        assert torch.is_autocast_enabled("cpu") == (self.wanted == "bf16")
        if progress >= self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(model, batch, temperature, progress)

    def predict(self, model, batch, temperature, trace):
        assert torch.is_autocast_enabled("cpu") == (self.wanted == "bf16")
        return super().predict(model, batch, temperature, trace)


@pytest.fixture
def train(tmp_path, monkeypatch):
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def train(task, features, *flags, out="out", config="toy.yaml"):
        monkeypatch.setattr(precision, "processor_features", lambda: features)
        common = ["--config", tmp_path / config, "--output_dir", tmp_path / out, "--device", "cpu", "--p", 0.3]
        (status,) = run(task, flags=[*common, "--num_workers", 0, *flags])
        return status

    return train


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_run_keeps_its_precision_wherever_it_goes_on(train, tmp_path, capfd, amp):
    here, there = [set(), precision.BF16_UNITS] if amp == "off" else [precision.BF16_UNITS, set()]
    assert train(Seeing(amp, stop=1.3), here) == 143
    assert f"amp: {amp}" in (tmp_path / "out" / "config.yaml").read_text().splitlines()
    other = "bf16" if amp == "off" else "off"
    assert train(Toy(), there, "--resume", "--amp", other) == 2
    assert f"is a run with amp '{amp}' instead of '{other}'; --resume_anyway" in capfd.readouterr().err
    assert train(Seeing(amp), there, "--resume", "--amp", "auto") == 0
    assert f"amp: {amp}" in (tmp_path / "out" / "config.yaml").read_text().splitlines()
    assert train(Seeing(amp), here, out="whole") == 0
    assert equal(result(tmp_path / "out"), result(tmp_path / "whole"))
    best = tmp_path / "out" / "checkpoint_best.pth"
    evaluation = ["--evaluate", "--pretrained", best]
    assert train(Seeing(amp), there, *evaluation, config="out/config.yaml") == 0, "it is scored as it was trained"
    assert train(Seeing(other), there, *evaluation) == 0, "unless the configuration is another"


@pytest.mark.parametrize("asked, amp", [("auto", "off"), ("bf16", "bf16"), ("off", "off")])
def test_a_run_from_before_it_was_written_down(train, tmp_path, asked, amp):
    """It kept the flag, and auto was float32 on every processor."""
    last = tmp_path / "out" / "checkpoint_last.pth"
    assert train(Seeing(amp, stop=1.3), set(), "--amp", amp) == 143
    content = checkpoint.read(last)
    del content["settings"]["amp"]
    content["settings"]["--amp"] = asked
    torch.save(content, tmp_path / "older.pth")
    os.replace(tmp_path / "older.pth", last)
    assert train(Seeing(amp), precision.BF16_UNITS, "--resume") == 0
    assert checkpoint.read(last)["settings"]["amp"] == amp
