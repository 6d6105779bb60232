"""Coverage from the command line to the checkpoint and back, on NLVR2 in miniature: shape, amount, what is refused."""

import json
import math
import shutil

import pytest
import torch

from compress_nlvr_dtp import NLVR
from madtp.cost.measure import CalibrationSample
from madtp.cost.schedule import SHAPES
from madtp.run import engine
from madtp.run.engine import main, prepare, write_epoch
from madtp.run.flags import parse
from madtp.run.schedule import find_shape
from madtp.shared.weights.checkpoint import read
from madtp.shared.weights.stored import Stored
from tests.miniature import make_data, write_config
from tests.run.test_distributed import common

DENSE = {"max_epoch": 1, "epoch_steps": 1, "calibration_batches": 2, "ramp": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data, a dense model, and one that was compressed by coverage."""
    folder = tmp_path_factory.mktemp("coverage")
    make_data(folder)
    config = write_config(folder, folder / "nlvr.yaml", "nlvr", **DENSE)
    assert main(NLVR(), [*common(config, folder / "dense"), "--p", "0"]) == 0
    assert main(NLVR(), [*common(config, folder / "half"), "--p", "0.4", "--keep", "coverage"]) == 0
    return folder


def evaluate(folder, checkpoint, out, *flags):
    arguments = [*common(folder / "nlvr.yaml", out), "--evaluate", "--pretrained", str(folder / checkpoint), *flags]
    assert main(NLVR(), arguments) == 0
    return json.loads((out / "evaluate.txt").read_text())


def test_a_run_finds_amount_and_shape_and_says_them(folder):
    (record,) = [json.loads(line) for line in (folder / "half" / "log.txt").read_text().splitlines()]
    best, last = (read(folder / "half" / f"checkpoint_{name}.pth") for name in ("best", "last"))
    told = "architecture", "batch_size", "keep", "keep_norm", "shape", "temperature"
    assert {name: best[name] for name in told} == {name: last[name] for name in told}
    stored = Stored.of(best)
    assert record["keep"] == stored.keep == "coverage" and record["shape"] == stored.shape in SHAPES
    assert abs(record["percent"] - 60) <= 0.5 and record["percent_p10"] == pytest.approx(
        record["percent_p90"], rel=0.02
    )
    assert record["temperature"] == stored.temperature > 0 and record["keep_norm"] is stored.keep_norm is False


class Unplanned:
    """A rule that does not tell beforehand what it will do."""

    texts = False

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, *inputs, **named):
        return self.rule(*inputs, **named)


def test_an_amount_costs_what_inference_would_without_running_it(folder, tmp_path):
    run = prepare(NLVR(), *parse([*common(folder / "nlvr.yaml", tmp_path), "--keep", "coverage"], NLVR()))
    passes, probe, sample = [], run.task.probe, run.calibration_sample()
    run.task.probe = lambda model, batch, amount, trace: passes.append(amount) or probe(model, batch, amount, trace)
    amounts = 0.0, 0.3, 3.0, math.inf
    with run.inference() as model:
        planned = [sample.cost(run.task, model, amount) for amount in amounts]
        assert passes == [0.0] * len(sample.batches)
        model.keep = Unplanned(model.keep)
        assert planned == pytest.approx([sample.cost(run.task, model, amount) for amount in amounts])
        assert len(passes) == 5 * len(sample.batches)


@pytest.mark.parametrize("name, size", [("best", 4), ("last", 25)])
def test_a_checkpoint_is_scored_by_its_own_rule_and_shape(folder, tmp_path, name, size):
    record = evaluate(folder, f"half/checkpoint_{name}.pth", tmp_path, "--set", f"batch_size_test={size}")
    trained = json.loads((folder / "half" / "log.txt").read_text())
    for name in ("keep", "shape", "temperature", "val_accuracy"):
        assert record[name] == trained[name]
    assert record["tokens"]["image"] == trained["tokens"]["image"]


def test_a_dense_checkpoint_is_pruned_untrained(folder, tmp_path):
    record = evaluate(folder, "dense/checkpoint_best.pth", tmp_path, "--keep", "coverage", "--p", "0.3")
    assert abs(record["percent"] - 70) <= 0.6 and record["shape"] in SHAPES
    assert evaluate(folder, "dense/checkpoint_best.pth", tmp_path, "--p", "0.3")["percent"] == 100


@pytest.mark.parametrize(
    "checkpoint, flags, says",
    [
        ("dense", ("--keep", "coverage", "--p", "0.99"), "p 0.99 is out of reach"),
        ("half", ("--keep", "batch"), "prunes by coverage"),
        ("half", ("--set", "keep=batch"), "prunes by coverage"),
        ("dense", ("--keep", "coverage", "--temperature", "2"), "needs a shape"),
        ("dense", ("--set", "shape=1"), "shape is 1, but tokens are kept by batch"),
        ("dense", ("--set", "keep_norm=true"), "keep_norm is true, but tokens are kept by batch"),
    ],
)
def test_what_has_no_meaning_is_refused_in_evaluation(folder, tmp_path, capsys, checkpoint, flags, says):
    best = str(folder / checkpoint / "checkpoint_best.pth")
    arguments = [*common(folder / "nlvr.yaml", tmp_path), "--evaluate", "--pretrained", best, *flags]
    assert main(NLVR(), arguments) == 2
    assert says in capsys.readouterr().err


def test_rule_and_shape_that_are_set_go_before_the_checkpoint_s(folder, tmp_path):
    half, dense = "half/checkpoint_best.pth", "dense/checkpoint_best.pth"
    own, other = (evaluate(folder, half, tmp_path, *flags) for flags in ([], ["--set", "shape=7"]))
    assert own["shape"] != other["shape"] == 7 and own["temperature"] == other["temperature"]
    assert own["percent"] != other["percent"]
    assert abs(evaluate(folder, dense, tmp_path, "--p", "0.3", "--set", "keep=coverage")["percent"] - 70) <= 0.6


def test_lengths_are_kept_where_that_is_asked_for_and_from_then_on(folder, tmp_path):
    half, out = "half/checkpoint_best.pth", tmp_path / "long"
    own, other = (evaluate(folder, half, tmp_path, *flags) for flags in ([], ["--set", "keep_norm=true"]))
    assert (own["keep_norm"], other["keep_norm"]) == (False, True)
    assert [own[name] for name in ("shape", "temperature", "percent")] == [
        other[name] for name in ("shape", "temperature", "percent")
    ]
    flags = ["--p", "0.4", "--keep", "coverage", "--set", "shape=0.7", "keep_norm=true"]
    assert main(NLVR(), [*common(folder / "nlvr.yaml", out), *flags]) == 0
    assert Stored.of(read(out / "checkpoint_best.pth")).keep_norm
    trained = json.loads((out / "log.txt").read_text())
    scored = evaluate(folder, out / "checkpoint_best.pth", tmp_path)
    for name in ("keep", "shape", "keep_norm", "temperature", "val_accuracy"):
        assert scored[name] == trained[name]


@pytest.mark.parametrize(
    "flags, says", [(("--temperature", "2"), "needs a shape"), (("--controller", "ladder"), "ladder moves MADTP's")]
)
def test_what_has_no_meaning_is_refused_in_training(folder, tmp_path, capsys, flags, says):
    assert main(NLVR(), [*common(folder / "nlvr.yaml", tmp_path), "--keep", "coverage", *flags]) == 2
    assert says in capsys.readouterr().err


def test_the_checkpoint_teaches_what_it_is_pruned_to_before_and_after_a_stop(folder, tmp_path, monkeypatch, capsys):
    config = write_config(folder, tmp_path / "taught.yaml", "nlvr", **DENSE | {"max_epoch": 2, "distill": 2.0})
    dense = ["--pretrained", str(folder / "dense" / "checkpoint_best.pth")]
    flags = ["--p", "0.4", "--keep", "coverage"]
    assert main(NLVR(), [*common(config, tmp_path / "none"), *flags]) == 2
    assert "--pretrained names it" in capsys.readouterr().err
    assert main(NLVR(), [*common(config, tmp_path / "whole"), *flags, *dense]) == 0

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            engine, "write_epoch", lambda run, record: stop() if record["epoch"] else write_epoch(run, record)
        )
        main(NLVR(), [*common(config, tmp_path / "parts"), *flags, *dense])
    assert main(NLVR(), [*common(config, tmp_path / "parts"), *flags, *dense, "--resume"]) == 0
    whole, parts = (read(tmp_path / name / "checkpoint_last.pth")["model"] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(value, parts[name]) for name, value in whole.items())
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.txt").read_text().splitlines()]
    assert all(record["train_loss_distil"] > 0 for record in records)


def test_a_dense_run_has_nothing_to_learn_from_the_dense_model(folder, tmp_path, caplog):
    config = write_config(folder, tmp_path / "taught.yaml", "nlvr", **DENSE | {"distill": 2.0})
    assert main(NLVR(), [*common(config, tmp_path / "out"), "--p", "0"]) == 0
    assert caplog.text.count("distill 2 has no effect") == 1


def test_a_dense_run_goes_on_dense_or_lends_its_weights(folder, tmp_path, capfd):
    """It trained no learnable tokens, so that there is no state of the optimizer to go on with for them."""
    shutil.copytree(folder / "dense", tmp_path / "out")
    arguments = [*common(folder / "nlvr.yaml", tmp_path / "out"), "--p", "0.3", "--resume", "--resume_anyway"]
    assert main(NLVR(), [*arguments, "--epoch", "2"]) == 2
    last = tmp_path / "out" / "checkpoint_last.pth"
    error = capfd.readouterr().err
    assert error.startswith(f"error: {last} trained other parameters, being a run with --p 0.0 instead of 0.3")
    assert error.count("\n") == 1 and error.endswith(
        f"begin anew with its weights: --pretrained {last}, without --resume\n"
    )


def test_a_resumed_run_keeps_its_shape(folder, tmp_path, caplog):
    config = write_config(folder, tmp_path / "two.yaml", "nlvr", **DENSE)
    out = tmp_path / "out"
    assert main(NLVR(), [*common(config, out), "--p", "0.4", "--keep", "coverage"]) == 0
    assert "moves the outputs" in caplog.text
    shape = read(out / "checkpoint_last.pth")["shape"]
    caplog.clear()
    flags = ["--p", "0.4", "--keep", "coverage", "--resume", "--resume_anyway", "--epoch", "2"]
    assert main(NLVR(), [*common(config, out), *flags]) == 0
    assert read(out / "checkpoint_last.pth")["shape"] == shape and "moves the outputs" not in caplog.text
    assert main(NLVR(), [*common(config, out), *flags[:-1], "3", "--set", "shape=7"]) == 0
    assert shape != read(out / "checkpoint_last.pth")["shape"] == 7, "one that is asked for goes before it"


def test_the_shape_that_moves_the_outputs_least_wins(folder, tmp_path, monkeypatch):
    """Of a model whose outputs are moved by the shape alone; over all batches, and those of other processes."""
    flags = [*common(folder / "nlvr.yaml", tmp_path), "--keep", "coverage", "--p", "0.3"]
    run = prepare(NLVR(), *parse(flags, NLVR()))
    sample = CalibrationSample(run.loaders["val"], 2)
    strongly, weakly = 0.7, 2.0  # what the first batch and the second move least by
    dense = []

    def outputs(model, batch, temperature):
        if temperature == 0:
            dense.append(batch)
        wanted, weight = [(strongly, 1.0), (weakly, 0.1)][(len(dense) - 1) % 2]
        moved = 0.0 if temperature == 0 else weight * abs(math.log(model.keep.shape / wanted)) + 0.1
        return torch.full((len(batch["index"]), 2), moved)

    run.task.outputs = outputs
    assert find_shape(run, sample, 0.7) == strongly
    others = iter([0.0 if shape == 1.4 else 1e6 for shape in SHAPES])
    monkeypatch.setattr("madtp.run.schedule.all_reduce_sum", lambda value: value + next(others))
    assert find_shape(run, sample, 0.7) == 1.4


def test_every_shape_is_compared_at_its_own_amount(folder, tmp_path):
    flags = [*common(folder / "nlvr.yaml", tmp_path), "--keep", "coverage", "--p", "0.3"]
    run = prepare(NLVR(), *parse(flags, NLVR()))
    sample, asked, plain = CalibrationSample(run.loaders["val"], 1), {}, run.task.outputs

    def outputs(model, batch, temperature):
        if temperature > 0:
            asked[model.keep.shape] = sample.cost(run.task, model, temperature)
        return plain(model, batch, temperature)

    run.task.outputs = outputs
    find_shape(run, sample, 0.7)
    assert asked.keys() == {*SHAPES} and all(abs(share - 0.7) <= 0.005 for share in asked.values())
