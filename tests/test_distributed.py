"""Two processes do what one does: the same scores and costs, one temperature, one resumed run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from compress_nlvr_dtp import NLVR
from madtp import checkpoint
from madtp.engine import main
from tests.miniature import make_data, write_config
from tests.toy import Toy

ROOT = Path(__file__).parents[1]
TOY = "{batch_size_train: 8, batch_size_test: 8, max_epoch: 3, init_lr: 0.05, calibration_batches: 4}"


def launch(*command):
    """Runs a script on two processes as a user would; returns exit status, output and errors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launcher, "--", *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def common(config, out):
    return ["--config", str(config), "--output_dir", str(out), "--device", "cpu", "--num_workers", "0"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_scores(one, other):
    """All but what a stopwatch says, to rounding: sums over processes are taken in another order."""
    names = {name for name in one if "second" not in name and name != "checkpoint"}
    assert names == {name for name in other if "second" not in name and name != "checkpoint"}
    for name in names:
        if name.endswith("tokens"):
            assert one[name].keys() == other[name].keys()
            assert all(one[name][tower] == pytest.approx(other[name][tower]) for tower in one[name])
        else:
            assert one[name] == pytest.approx(other[name], rel=1e-9), name


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """Two epochs of the toy on two processes."""
    folder = tmp_path_factory.mktemp("toy")
    config = folder / "toy.yaml"
    config.write_text(TOY)
    flags = common(config, folder / "out")
    first = launch("-m", "tests.toy", *flags, "--p", 0.5, "--accum", 2, "--set", "max_epoch=2")
    assert first.returncode == 0, first.stderr
    return folder, config, flags, first


def test_two_processes_share_one_run(toy_run):
    folder, _, _, launched = toy_run
    records = read(folder / "out" / "log.txt")
    assert [record["epoch"] for record in records] == [0, 1]
    assert all(abs(record["percent"] - record["target"]) <= 0.5 for record in records)
    assert launched.stdout.count("effective batch 32 = 8 x 2 processes x 2 accumulated") == 1, "only one process speaks"
    stored = checkpoint.read(folder / "out" / "checkpoint_last.pth")
    one, other = (process["random"]["torch"] for process in stored["processes"])
    assert not one.equal(other), "dropout differs between processes"


def test_one_process_scores_the_checkpoint_as_two_did(toy_run):
    folder, config, _, _ = toy_run
    last = read(folder / "out" / "log.txt")[-1]
    flags = ["--evaluate", "--pretrained", str(folder / "out" / "checkpoint_last.pth")]
    assert main(Toy(), [*common(config, folder / "one"), *flags]) == 0
    evaluated = json.loads((folder / "one" / "evaluate.txt").read_text())
    assert_same_scores(evaluated, {name: last[name] for name in evaluated if name in last} | {"checkpoint": ""})


def test_a_run_of_two_processes_resumes_on_one(toy_run):
    folder, config, _, _ = toy_run
    last = folder / "out" / "checkpoint_last.pth"
    assert main(Toy(), [*common(config, folder / "fewer"), "--p", "0.5", "--resume", str(last), "--resume_anyway"]) == 0
    assert [record["epoch"] for record in read(folder / "fewer" / "log.txt")] == [2]


def test_nlvr_on_two_processes_equals_one(tmp_path):
    make_data(tmp_path)
    config = write_config(tmp_path, tmp_path / "nlvr.yaml", "nlvr", max_epoch=1, epoch_steps=2, batch_size_test=8)
    compressed = launch("compress_nlvr_dtp.py", *common(config, tmp_path / "two"), "--p", 0.1)
    assert compressed.returncode == 0, compressed.stderr
    (last,) = read(tmp_path / "two" / "log.txt")
    assert last["temperature"] > 0 and last["train_loss_sim"] > 0
    flags = ["--evaluate", "--pretrained", str(tmp_path / "two" / "checkpoint_last.pth")]
    assert main(NLVR(), [*common(config, tmp_path / "one"), *flags]) == 0
    evaluated = json.loads((tmp_path / "one" / "evaluate.txt").read_text())
    assert {"val_accuracy", "test_accuracy", "percent", "tokens", "test_gflops"} <= evaluated.keys()
    assert_same_scores(evaluated, {name: last[name] for name in evaluated if name in last} | {"checkpoint": ""})


def test_a_mistake_ends_every_process(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY)
    failed = launch("-m", "tests.toy", *common(tmp_path / "toy.yaml", tmp_path / "out"), "--p", 0.7)
    assert failed.returncode != 0
    assert "error: p 0.7 is out of reach" in failed.stderr
    assert not list((tmp_path / "out").glob("*.pth"))
