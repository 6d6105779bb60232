"""A run that was stopped by an earlier version of this project ends as that version would have ended it.

`stopped/` is the folder of that run: NLVR2 in miniature, stopped after two of the four steps of its second epoch.
`end.pth` holds what the earlier version made of it: the weights and the last line of the log. They are held to it up to
rounding: processors of one name and one set of vectors still sum up in different orders.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import models.blip_nlvr  # noqa: F401 - here, not in the process that the test forks
from compress_nlvr_dtp import NLVR
from madtp.run import precision
from madtp.shared.weights import checkpoint
from tests.miniature import make_data
from tests.processes import run
from tests.run.test_resume import without_times

STOPPED = Path(__file__).parent / "stopped"
CLOSE = 0.03  # of the way, between processors: AdamW makes whole steps of gradients that are rounding alone


def distance(one, other):
    """Between the weights of two models."""
    return sum((one[name] - other[name]).double().square().sum() for name in other).sqrt()


def test_it_goes_on_to_the_same_end(tmp_path, monkeypatch):
    """In float32, as it began, though today it would begin in bf16."""
    monkeypatch.setattr(precision, "processor_features", lambda: precision.BF16_UNITS)
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    shutil.copytree(STOPPED, "run")
    flags = ["--config", "run/config.yaml", "--output_dir", "run", "--device", "cpu", "--num_workers", 0]
    assert run(NLVR(), flags=[*flags, "--p", 0.12, "--seed", 3, "--resume"]) == [0]
    end = torch.load(STOPPED / "end.pth", weights_only=True)
    assert "amp: off" in Path("run/config.yaml").read_text().splitlines()
    weights = checkpoint.read(Path("run/checkpoint_last.pth"))["model"]
    (record,) = without_times([json.loads(Path("run/log.txt").read_text().splitlines()[-1])])
    start = checkpoint.read(STOPPED / "checkpoint_last.pth")["model"]
    assert weights.keys() == end["weights"].keys()
    assert distance(weights, end["weights"]) < CLOSE * distance(start, end["weights"])
    assert record.keys() == end["record"].keys()
    for name in ("train_loss_task", "train_loss_sim"):
        assert record[name] == pytest.approx(end["record"][name], rel=1e-3)
    assert record["percent"] == pytest.approx(end["record"]["percent"], rel=1e-2)
