"""The rule of keeping from the command line to the checkpoint and back, on a miniature of NLVR2."""

import json

import pytest
import torch

from compress_nlvr_dtp import NLVR
from madtp.run.engine import main
from madtp.shared.weights.checkpoint import read
from madtp.shared.weights.stored import Stored
from tests.miniature import make_data, write_config
from tests.run.test_distributed import common

SIZES = (4, 25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data, and a model compressed by each rule."""
    folder = tmp_path_factory.mktemp("keep")
    make_data(folder)
    config = write_config(folder, folder / "nlvr.yaml", "nlvr", max_epoch=1, epoch_steps=2, calibration_batches=9)
    for keep in ("batch", "sample"):
        assert main(NLVR(), [*common(config, folder / keep), "--p", "0.3", "--keep", keep]) == 0
    return folder


def evaluate(folder, checkpoint, out, *flags):
    arguments = [*common(folder / "nlvr.yaml", out), "--evaluate", "--pretrained", str(folder / checkpoint), *flags]
    assert main(NLVR(), arguments) == 0
    return json.loads((out / "evaluate.txt").read_text())


def test_the_mean_of_the_samples_is_steered_and_their_spread_logged(folder):
    (record,) = [json.loads(line) for line in (folder / "sample" / "log.txt").read_text().splitlines()]
    assert record["keep"] == "sample" and abs(record["percent"] - 70) < 0.5
    assert record["percent_p10"] < record["percent"] < record["percent_p90"]
    for low, mean, high in zip(*(record[f"tokens{end}"]["image"] for end in ("_p10", "", "_p90")), strict=True):
        assert low <= mean <= high


@pytest.mark.parametrize("checkpoint", ["checkpoint_best.pth", "checkpoint_last.pth"])
def test_a_checkpoint_is_scored_by_its_own_rule_at_any_batch_size(folder, tmp_path, caplog, checkpoint):
    assert Stored.of(read(folder / "sample" / checkpoint))[1:3] == ("sample", 25)
    few, many = (
        evaluate(folder, f"sample/{checkpoint}", tmp_path / str(size), "--set", f"batch_size_test={size}")
        for size in SIZES
    )
    assert few["keep"] == "sample" and few["percent"] == pytest.approx(many["percent"], rel=1e-6)
    assert few["val_accuracy"] == many["val_accuracy"] and few["tokens"]["image"] == many["tokens"]["image"]
    assert "was scored in batches" not in caplog.text


def test_another_batch_size_is_said_where_it_matters(folder, tmp_path, caplog):
    few = evaluate(folder, "batch/checkpoint_best.pth", tmp_path / "few", "--set", "batch_size_test=4")
    assert caplog.text.count("scored in batches of 25 and is asked in batches of 4") == 1
    caplog.clear()
    many = evaluate(folder, "batch/checkpoint_best.pth", tmp_path / "many")
    assert few["percent"] < many["percent"] and "was scored in batches" not in caplog.text
    evaluate(folder, "batch/checkpoint_best.pth", tmp_path / "dense", "--p", "0", "--set", "batch_size_test=4")
    assert "was found for keep=" not in caplog.text
    asked = evaluate(folder, "batch/checkpoint_best.pth", tmp_path / "asked", "--keep", "sample")
    assert "was found for keep=batch; by sample it leaves another cost" in caplog.text
    assert asked["keep"] == "sample" and asked["percent"] < many["percent"]
    assert "was scored in batches" not in caplog.text


@pytest.mark.parametrize("entry", [{"keep": "some"}, {"keep": ["batch"]}, {"batch_size": 0}, {"batch_size": "8"}])
def test_what_no_model_prunes_by_is_refused(folder, tmp_path, capsys, entry):
    content = torch.load(folder / "batch" / "checkpoint_best.pth", weights_only=True)
    torch.save(content | entry, tmp_path / "bad.pth")
    flags = ["--evaluate", "--pretrained", str(tmp_path / "bad.pth")]
    assert main(NLVR(), [*common(folder / "nlvr.yaml", tmp_path / "out"), *flags]) == 2
    (name,) = entry
    said = {"keep": "rule of keeping", "batch_size": "batch_size"}[name]
    error = capsys.readouterr().err.strip()
    assert "bad.pth" in error and said in error and "\n" not in error
