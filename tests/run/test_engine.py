"""The engine by itself, on the toy task: what a run does, what it leaves, how it stops and goes on."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch

from compress_caption_dtp import Caption
from compress_nlvr_dtp import NLVR
from compress_vqa_dtp import VQA
from data import create_loader
from madtp.cost.measure import CalibrationSample, CostMeter
from madtp.cost.trace import Trace
from madtp.look.scripts import task_named
from madtp.run.engine import evaluate, main, prepare, qualified_score
from madtp.run.flags import parse
from madtp.run.output import flatten
from madtp.run.precision import precision
from madtp.run.task import gather_predictions
from madtp.shared.weights import checkpoint
from tests.miniature import make_data, write_config
from tests.models.test_models import PRUNED, Miniature
from tests.toy import CEILING, PATCHES, Points, Toy

CONFIG = "{batch_size_train: 8, batch_size_test: 8, max_epoch: 4, init_lr: 0.05, calibration_batches: 3, print_freq: 4}"
VAL_BATCHES, TEST_BATCHES, TRAIN_BATCHES = 5, 3, 6


@pytest.fixture
def run(tmp_path):
    """Runs the toy task; returns the exit status, the task and the log's records."""
    config = tmp_path / "toy.yaml"
    config.write_text(CONFIG)

    def run(*flags, task=None, out="out"):
        task = task or Toy()
        folder = tmp_path / out
        common = ["--config", str(config), "--output_dir", str(folder), "--device", "cpu", "--num_workers", "0"]
        status = main(task, [*common, *map(str, flags)])
        log = folder / "log.txt"
        return status, task, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    run.folder = tmp_path / "out"
    return run


def without_times(records):
    return [{name: value for name, value in record.items() if "second" not in name} for record in records]


# What a run does.


def test_every_epoch_lands_on_its_target(run):
    status, _, records = run("--p", 0.5)
    assert status == 0
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    assert [record["target"] for record in records] == [75, 50, 50, 50]
    for record in records:
        assert abs(record["percent"] - record["target"]) <= 0.5
        assert record["percent"] == pytest.approx(100 * record["gflops"] / record["gflops_dense"])
        assert record["tokens"]["image"] == [pytest.approx(record["gflops"] * (1 + PATCHES))]
        assert record["temperature"] > 0 and record["seconds"] > 0 and record["val_samples_per_second"] > 0
        assert {"train_loss_task", "train_loss_sim", "val_accuracy", "test_accuracy", "lr"} <= record.keys()
    assert records[-1]["train_loss_task"] < records[0]["train_loss_task"]


def test_the_best_checkpoint_is_the_best_on_validation_among_those_cheap_enough(run):
    _, _, records = run("--p", 0.5)
    cheap = [record for record in records if record["percent"] <= 54]
    assert cheap != records, "the ramp's first epoch is dearer"
    best = max(cheap, key=lambda record: (record["val_accuracy"], record["epoch"]))
    stored = checkpoint.read(run.folder / "checkpoint_best.pth")
    assert (stored["epoch"], stored["temperature"]) == (best["epoch"], best["temperature"])
    assert stored["metrics"] == best
    assert [record["epoch"] for record in records if record["best"]][-1] == best["epoch"]


def test_a_model_counts_only_within_the_slack_of_its_cost():
    run = SimpleNamespace(task=Toy(), config={"cost_slack": 0.04})
    assert qualified_score(run, 0.5, {"accuracy": 1.0, "percent": 53.9}) == 1.0
    assert qualified_score(run, 0.5, {"accuracy": 1.0, "percent": 54.1}) == -math.inf
    assert qualified_score(run, None, {"accuracy": 1.0, "percent": 100.0}) == 1.0


def test_of_equally_good_epochs_the_last_is_the_best(run):
    class Indifferent(Toy):
        def score(self, metrics):
            return 1.0

    _, _, records = run("--p", 0, "--epoch", 2, task=Indifferent())
    assert [record["best"] for record in records] == [True, True]
    assert checkpoint.read(run.folder / "checkpoint_best.pth")["epoch"] == 1


def test_the_folder_tells_how_the_run_was_made(run):
    run("--p", 0.5, "--set", "weight_decay=0.1")
    assert "weight_decay: 0.1" in (run.folder / "config.yaml").read_text()
    environment = (run.folder / "environment.txt").read_text()
    assert re.search(r"^torch \d", environment, re.M) and "command" in environment
    said = (run.folder / "train.log").read_text()
    assert "effective batch 8 = 8 x 1 processes x 1 accumulated" in said and "chosen on val\n" in said
    assert "toy: 48 train, 37 val, 20 test samples; 0.0 M parameters" in said
    assert len(re.findall(r"epoch 0  step [46]/6 ", said)) == 2


def test_without_validation_the_test_split_steers_and_chooses(run):
    class Untried(Toy):
        def datasets(self, evaluate):
            train, _, test = super().datasets(evaluate)
            return train, None, test

    status, task, records = run("--p", 0.3, "--epoch", 1, "--set", "ramp=0", task=Untried())
    assert status == 0 and "chosen on test\n" in (run.folder / "train.log").read_text()
    assert abs(records[0]["percent"] - 70) <= 0.5 and records[0]["best"]
    assert "test_accuracy" in records[0] and "val_accuracy" not in records[0]


def test_evaluation_repeats_the_logged_scores_with_one_forward_per_batch(run):
    _, _, records = run("--p", 0.5)
    best = [record for record in records if record["best"]][-1]
    made = [(run.folder / name).read_text() for name in ("config.yaml", "environment.txt", "log.txt")]
    status, task, _ = run("--evaluate", "--pretrained", run.folder / "checkpoint_best.pth")
    assert status == 0
    assert task.model.forwards == [best["temperature"]] * (VAL_BATCHES + TEST_BATCHES)
    evaluated = json.loads((run.folder / "evaluate.txt").read_text())
    same = set(evaluated) - {"checkpoint", "val_samples_per_second", "test_samples_per_second"}
    assert {"val_accuracy", "test_accuracy", "percent", "gflops", "temperature"} <= same
    assert {name: evaluated[name] for name in same} == {name: best[name] for name in same}
    assert len(json.loads((run.folder / "result" / "toy_val.json").read_text())) == 37
    assert made == [(run.folder / name).read_text() for name in ("config.yaml", "environment.txt", "log.txt")]


@pytest.mark.parametrize("flags, temperature", [(["--temperature", 7], 7.0), (["--p", 0], 0.0)])
def test_evaluation_at_another_temperature(run, flags, temperature):
    run("--p", 0.5, "--epoch", 1, "--set", "ramp=0")
    _, task, _ = run("--evaluate", "--pretrained", run.folder / "checkpoint_last.pth", *flags)
    assert set(task.model.forwards) == {temperature}


def test_a_dense_checkpoint_is_evaluated_dense(run, tmp_path):
    checkpoint.save(tmp_path / "dense.pth", model=Toy().build_model({"pretrained": ""}, False).state_dict())
    status, task, _ = run("--evaluate", "--pretrained", tmp_path / "dense.pth")
    assert status == 0 and set(task.model.forwards) == {0.0}
    assert json.loads((run.folder / "evaluate.txt").read_text())["percent"] == 100
    assert "the checkpoint's own T 0; --p does not change it" in (run.folder / "train.log").read_text(), "it is .5"


def test_p_0_trains_the_dense_model_and_leaves_the_alignment_alone(run):
    _, task, records = run("--p", 0)
    assert set(task.model.forwards) == {0.0}
    assert len(task.model.forwards) == 4 * (TRAIN_BATCHES + VAL_BATCHES + TEST_BATCHES), "nothing is calibrated"
    assert not task.model.space_dict.requires_grad and task.model.head.weight.requires_grad
    assert all(record["percent"] == 100 and record["target"] is None for record in records)
    assert any(record["best"] for record in records)


@pytest.mark.parametrize("flags", [("--p", 0.3), ("--p", 0.3, "--controller", "ladder"), ("--temperature", 5)])
def test_a_run_that_prunes_trains_the_alignment(run, flags):
    run(*flags, "--epoch", 1)
    run(*flags, "--epoch", 1, "--set", "init_lr=0", "min_lr=0", out="still")
    moved, still = (
        checkpoint.read(folder / "checkpoint_last.pth")["model"]["space_dict"]
        for folder in (run.folder, run.folder.parent / "still")
    )
    assert not torch.equal(moved, still)


def test_a_temperature_of_the_user_is_kept(run):
    _, task, records = run("--temperature", 5, "--epoch", 2)
    assert set(task.model.forwards) == {5.0}
    assert [record["temperature"] for record in records] == [5.0, 5.0] and records[-1]["percent"] > 90
    assert any(record["best"] for record in records)


def test_the_ladder_climbs_once_an_epoch(run, caplog):
    _, _, records = run("--p", 0.5, "--controller", "ladder")
    assert [record["temperature"] for record in records] == [1, 2, 3, 4]
    assert not any(record["best"] for record in records)
    assert not (run.folder / "checkpoint_best.pth").exists()
    assert "there is no checkpoint_best.pth" in caplog.text


def test_mixed_precision_trains(run):
    for amp in ("bf16", "fp16"):
        status, _, records = run("--p", 0.3, "--epoch", 1, "--amp", amp, out=amp)
        assert status == 0 and math.isfinite(records[0]["train_loss_task"])
    assert precision("auto", torch.device("cpu")) == precision("off", torch.device("cpu")) == torch.float32


# How a run stops and goes on.


def test_resume_auto_begins_where_there_is_nothing_to_resume(run):
    status, _, records = run("--p", 0.3, "--epoch", 1, "--resume", "auto")
    assert status == 0 and len(records) == 1


def test_a_finished_run_resumes_to_its_end_at_once_and_says_so(run, capsys):
    _, _, before = run("--p", 0.3, "--epoch", 1)
    assert "epochs are done" not in capsys.readouterr().out
    status, task, after = run("--p", 0.3, "--epoch", 1, "--resume", run.folder / "checkpoint_last.pth")
    assert status == 0 and after == before and task.model.forwards == []
    said = capsys.readouterr().out
    assert "all 1 epochs are done; a larger --epoch with --resume_anyway trains on" in said and "resuming" not in said


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(run, capsys):
    broken = Toy()
    broken.explode_at = 1.5
    status, _, records = run("--p", 0.5, task=broken)
    message = capsys.readouterr().err
    assert status == 2 and len(records) == 1
    assert re.search(
        r"^error: .* step 3 of epoch 1, T \d.*: loss_task nan, loss_sim nan; samples \[(\d+, ){7}", message
    )
    assert message.count("\n") == 1


def test_a_ratio_out_of_reach_is_refused_before_training(run, capsys):
    status, task, records = run("--p", 0.7)
    message = capsys.readouterr().err
    assert status == 2 and records == []
    assert task.model.forwards == [math.inf] * 3, "one look at the calibration sample"
    assert re.match(rf"error: p 0.7 .*{CEILING:.0%}"[:-1], message) and message.count("\n") == 1


def other_model(path):
    checkpoint.save(path, model={"head.weight": torch.zeros(3, 3)})


@pytest.mark.parametrize(
    "flags, complaint",
    [
        (["--nonsense"], "nonsense"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--set", "max_epochs=3"], "max_epoch"),
        (["--p", 1.5], "--p"),
        (["--evaluate"], "--pretrained"),
        (["--evaluate", "--resume"], "--pretrained"),
        (["--temperature", 5, "--controller", "ladder"], "leave one out"),
        (["--set", "distill=2"], "distill is 2, but there is no dense model to learn from: --pretrained names it"),
        (["--output_dir", "/proc/out"], "cannot write to /proc/out"),
        (["--resume", "nowhere.pth"], "nowhere.pth"),
        (["--resume", "other.pth"], "other.pth"),
        (["--resume", "weights.pth"], "weights.pth"),
        (["--resume", "a" * 300], "a: File name too long; give a path"),
        (["--set", "batch_size_train=100"], "100"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run, tmp_path, monkeypatch, capsys, flags, complaint):
    monkeypatch.chdir(tmp_path)
    other_model(tmp_path / "other.pth")
    checkpoint.save(tmp_path / "weights.pth", model=Toy().build_model({"pretrained": ""}, False).state_dict())
    status, task, records = run(*flags)
    captured = capsys.readouterr()
    assert status == 2 and records == []
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and complaint in captured.err
    assert not getattr(task, "model", None) or task.model.forwards == []


# The real tasks, in miniature.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


TASKS = {"nlvr": (NLVR, "accuracy"), "caption": (Caption, "exact_match"), "vqa": (VQA, "accuracy")}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_compresses_resumes_and_evaluates(data, tmp_path, name):
    task, score = TASKS[name]
    config, out = write_config(data, tmp_path / "config.yaml", name), tmp_path / "out"
    flags = ["--config", str(config), "--output_dir", str(out), "--device", "cpu", "--num_workers", "0"]
    compress = [*flags, "--p", "0.1", "--set", "ramp=0", "calibration_batches=30"]
    assert main(task(), [*compress, "--epoch", "1"]) == 0
    assert main(task(), [*compress, "--epoch", "2", "--resume", "--resume_anyway"]) == 0
    records = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1]
    for record in records:
        assert record["temperature"] > 0 and record["train_loss_sim"] > 0 and math.isfinite(record["train_loss_task"])
        assert abs(record["percent"] - 90) <= 1.5, "a step of a small model's cost is about a percent"
        assert 0 <= record[f"val_{score}"] <= 100
        assert len(record["tokens"]["image"]) == 2
    assert main(task(), [*flags, "--evaluate", "--pretrained", str(out / "checkpoint_last.pth")]) == 0
    evaluated = json.loads((out / "evaluate.txt").read_text())
    for key in (f"val_{score}", "percent", "temperature", "tokens"):
        assert evaluated[key] == records[-1][key]


@pytest.mark.parametrize("name", TASKS)
def test_a_probe_costs_what_the_inference_costs(data, tmp_path, name):
    config = write_config(data, tmp_path / "config.yaml", name)
    args, resolved = parse(["--config", str(config), "--device", "cpu", "--num_workers", "0"], TASKS[name][0])
    run = prepare(TASKS[name][0](), args, resolved)
    task, costs = run.task, {}
    with run.inference() as model:
        for temperature in (0.0, 64.0):
            trace, meter = Trace(), evaluate(run, "val", temperature)
            sample = CalibrationSample(run.loaders["val"], 100)
            share = sample.cost(task, model, temperature)
            assert share == pytest.approx(meter["percent"] / 100)
            task.probe(model, sample.batches[0], temperature, trace)
            costs[temperature] = task.cost(model, trace)
    assert 0 < costs[64.0] < costs[0.0]


# The parts.


@pytest.mark.parametrize("name", [*TASKS, "retrieval"])
def test_losses_weigh_as_in_the_paper(name):
    """The task's own as they are, and a tenth of the similarity loss, of the momentum towers too."""
    task, losses = task_named(name), Miniature(name).losses(PRUNED)
    task.config = {"distill": 7.0}
    expected = {loss: 0.1 if loss.startswith("loss_sim") else 1.0 for loss in losses}
    assert task.weights == expected | {"loss_distil": 7.0}


@pytest.mark.parametrize("missing", [[], [0, 1, 1], [0, 2, 3], [0, 1]])
def test_predictions_cover_every_sample_once(missing):
    assert gather_predictions([(2, "c"), (0, "a"), (1, "b")], 3) == [(0, "a"), (1, "b"), (2, "c")]
    with pytest.raises(RuntimeError):
        gather_predictions([(index, None) for index in missing], 3)


def test_the_calibration_sample_is_spread_evenly():
    loader = create_loader(Points(37, 0), 4, train=False)  # ten batches
    first = [batch["index"][0].item() // 4 for batch in CalibrationSample(loader, 4).batches]
    assert first == [0, 2, 5, 7]
    assert len(CalibrationSample(loader, 16).batches) == 10


def test_the_cost_meter_weighs_batches_by_their_samples():
    meter = CostMeter(lambda trace: sum(layer.left for layer in trace.layers["image"]))
    for samples, left in ((3, (9, 5)), (1, (7, 3))):
        with meter.forward(samples) as trace:
            trace.add("image", 10, left[0], True)
            trace.add("image", left[0], left[1], True)
    summary = meter.summary()
    assert summary["tokens"] == {"image": [8.5, 4.5]}
    assert (summary["gflops"], summary["gflops_dense"], summary["percent"]) == (13, 20, 65)


def test_metrics_are_flattened_with_their_split_in_front():
    metrics = {"val": {"accuracy": 1, "percent": 50, "results": []}, "test": {"accuracy": 2, "percent": 60}}
    flat = {"val_accuracy": 1, "percent": 50, "test_accuracy": 2, "test_percent": 60}
    assert flatten(metrics, "val") == flat
