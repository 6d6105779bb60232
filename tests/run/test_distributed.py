"""Several processes do what one does: the same scores and costs, one temperature, and they end together."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import models.blip  # noqa: F401 - here, not in every process that a test forks
import models.blip_vqa  # noqa: F401
import utils
from compress_caption_dtp import Caption
from compress_nlvr_dtp import NLVR
from compress_vqa_dtp import VQA
from madtp.run.engine import main
from madtp.scoring.caption_metrics import caption_metrics
from madtp.shared.weights import checkpoint
from tests.miniature import make_data, write_config
from tests.processes import free_port, run
from tests.toy import Toy

ROOT = Path(__file__).parents[2]
TOY = "{batch_size_train: 8, batch_size_test: 8, max_epoch: 3, init_lr: 0.05, calibration_batches: 4}"


def start(*command, nodes=("--nproc_per_node=2",), port=None):
    """Starts a script on two processes, as a user would."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *nodes, f"--master_port={port or free_port()}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*launcher, "--", *map(str, command)], cwd=ROOT, env=environment, **pipes)


def finish(process):
    """Waits for what was started; returns exit status, output and errors."""
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def launch(*command):
    """Runs a script on two processes; returns exit status, output and errors."""
    return finish(start(*command))


def common(config, out):
    return ["--config", str(config), "--output_dir", str(out), "--device", "cpu", "--num_workers", "0"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_scores(one, other):
    """All but what a stopwatch says, to rounding: sums over processes are taken in another order."""
    names = {name for name in one if "second" not in name and name != "checkpoint"}
    assert names == {name for name in other if "second" not in name and name != "checkpoint"}
    for name in names:
        if name == "keep":
            assert one[name] == other[name]
        elif "tokens" in name:
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


def test_captions_on_two_processes_equal_one(tmp_path, monkeypatch):
    """Their scores are asked for by one process alone, since Java has its price; here it is not to be found."""

    def watched(*args):
        with open(tmp_path / "asked", "a") as file:
            file.write(str(utils.rank()))
        return caption_metrics(*args)

    monkeypatch.setattr("compress_caption_dtp.caption_metrics", watched)
    monkeypatch.setenv("PATH", str(tmp_path))
    make_data(tmp_path)
    keys = {"max_epoch": 1, "epoch_steps": 2, "batch_size_train": 4, "batch_size_test": 8, "metrics": ["Bleu", "CIDEr"]}
    config = write_config(tmp_path, tmp_path / "caption.yaml", "caption", **keys)
    assert run(Caption(), Caption(), flags=[*common(config, tmp_path / "two"), "--p", 0.05]) == [0, 0]
    assert (tmp_path / "asked").read_text() == "00", "validation and test"
    (trained,) = read(tmp_path / "two" / "log.txt")
    assert trained["temperature"] > 0 and {"val_CIDEr", "test_Bleu_4", "val_exact_match"} <= trained.keys()
    flags = ["--evaluate", "--pretrained", tmp_path / "two" / "checkpoint_last.pth"]
    for out, tasks in (("one", [Caption()]), ("again", [Caption(), Caption()])):
        assert run(*tasks, flags=[*common(config, tmp_path / out), *flags]) == [0] * len(tasks)
    one, again = (json.loads((tmp_path / out / "evaluate.txt").read_text()) for out in ("one", "again"))
    assert_same_scores(one, again)
    assert_same_scores(one, {name: trained[name] for name in one if name in trained} | {"checkpoint": ""})
    for name in ("caption_val.json", "caption_test.json"):
        written = [(tmp_path / out / "result" / name).read_text() for out in ("one", "again")]
        assert written[0] == written[1] and [*json.loads(written[0])[0]] == ["image_id", "caption"]


def test_vqa_on_three_processes_with_uneven_shares_equals_one(tmp_path):
    make_data(tmp_path)
    keys = {"max_epoch": 1, "epoch_steps": 1, "batch_size_train": 4, "batch_size_test": 8, "k_test": 4}
    config = write_config(tmp_path, tmp_path / "vqa.yaml", "vqa", **keys)
    assert run(VQA(), VQA(), VQA(), flags=[*common(config, tmp_path / "three"), "--temperature", 64]) == [0, 0, 0]
    (trained,) = read(tmp_path / "three" / "log.txt")
    flags = ["--evaluate", "--pretrained", tmp_path / "three" / "checkpoint_last.pth"]
    for out, tasks in (("one", [VQA()]), ("two", [VQA(), VQA()])):
        assert run(*tasks, flags=[*common(config, tmp_path / out), *flags]) == [0] * len(tasks)
    one, two = (json.loads((tmp_path / out / "evaluate.txt").read_text()) for out in ("one", "two"))
    assert_same_scores(one, two)
    assert_same_scores(
        {name: one[name] for name in one if name in trained}, {name: trained[name] for name in one if name in trained}
    )
    for name in ("vqa_val.json", "vqa_result.json"):
        assert (tmp_path / "one" / "result" / name).read_text() == (tmp_path / "two" / "result" / name).read_text()


class Watched(Toy):
    """A toy task that writes down, for each process, with which temperature it trains and what it draws."""

    def __init__(self, folder):
        self.folder = folder

    def losses(self, model, batch, temperature, progress):
        with open(self.folder / f"rank{utils.rank()}", "a") as file:
            mask = model.module.dropout(torch.ones(20)).tolist()
            file.write(json.dumps({"temperature": temperature, "index": batch["index"].tolist(), "mask": mask}) + "\n")
        return super().losses(model, batch, temperature, progress)


def test_three_processes_share_temperatures_and_samples_but_no_random_numbers(tmp_path):
    (tmp_path / "toy.yaml").write_text("{batch_size_train: 5, batch_size_test: 4, max_epoch: 2, init_lr: 0.05}")
    flags = [*common(tmp_path / "toy.yaml", tmp_path / "out"), "--p", 0.4]
    assert run(*[Watched(tmp_path) for _ in range(3)], flags=flags) == [0, 0, 0]
    ranks = [read(tmp_path / f"rank{rank}") for rank in range(3)]
    assert len(ranks[0]) == 2 * (48 // 15)
    for steps in zip(*ranks, strict=True):
        assert len({step["temperature"] for step in steps}) == 1 and steps[0]["temperature"] > 0
        assert len({index for step in steps for index in step["index"]}) == 15
        assert len({tuple(step["mask"]) for step in steps}) == 3
    flags = ["--evaluate", "--pretrained", tmp_path / "out" / "checkpoint_last.pth"]
    assert run(Toy(), flags=[*common(tmp_path / "toy.yaml", tmp_path / "one"), *flags]) == [0]
    last, evaluated = read(tmp_path / "out" / "log.txt")[-1], read(tmp_path / "one" / "evaluate.txt")[0]
    assert_same_scores(evaluated, {name: last[name] for name in evaluated if name in last} | {"checkpoint": ""})


BROKEN = """
import sys
from madtp.run.engine import main
from tests.toy import Toy
from utils import UserError, rank

class Broken(Toy):
    def losses(self, model, batch, temperature, progress):
        if rank() == 1 and progress >= 1:
            raise {error}("process 1 met something")
        return super().losses(model, batch, temperature, progress)

sys.exit(main(Broken()))
"""


@pytest.mark.parametrize("error, first", [("RuntimeError", "Traceback"), ("UserError", "error (process 1): ")])
def test_a_process_that_fails_takes_the_other_along(tmp_path, error, first):
    (tmp_path / "toy.yaml").write_text(TOY)
    (tmp_path / "broken.py").write_text(BROKEN.format(error=error))
    started = time.monotonic()
    failed = launch(tmp_path / "broken.py", *common(tmp_path / "toy.yaml", tmp_path / "out"), "--p", 0.3)
    assert failed.returncode != 0 and time.monotonic() - started < 60
    errors = failed.stderr[failed.stderr.index(first) :]
    own = errors.index("process 1 met something")
    assert "losses" in errors[:own] or error == "UserError"
    assert "Traceback" not in errors[len(first) : own], "no other error is before its own"


def alone(tmp_path, monkeypatch, rank, port):
    """Starts one process of a run of two."""
    (tmp_path / "toy.yaml").write_text(TOY)
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    flags = common(tmp_path / "toy.yaml", tmp_path / "out")
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(main(Toy(), flags)))
    process.start()
    return process


def test_who_waits_for_the_others_says_so_and_can_be_ended(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("madtp.shared.launch.USUAL_WAIT", 0.2)
    port, said = free_port(), ""
    process = alone(tmp_path, monkeypatch, 1, port)
    deadline = time.monotonic() + 30
    while "waits" not in said and time.monotonic() < deadline:
        time.sleep(0.1)
        said += capfd.readouterr().err
    assert f"process 1 of 2 waits for the others at 127.0.0.1:{port}: are they started" in said
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGTERM


def test_a_port_that_another_run_has(tmp_path, monkeypatch, capfd):
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as other:
        process = alone(tmp_path, monkeypatch, 0, other.getsockname()[1])
        process.join(60)
    error = capfd.readouterr().err.splitlines()[-1]
    assert process.exitcode == 2 and error.startswith("error: process 0 of 2 cannot meet the others at 127.0.0.1:")
    assert error.endswith("another run has it, choose another --master_port")


def test_an_old_launcher_s_flag_changes_nothing(tmp_path):
    """torch.distributed.launch gives it to every process, besides the variables."""
    (tmp_path / "toy.yaml").write_text(TOY)
    flags = [*common(tmp_path / "toy.yaml", tmp_path / "out"), "--p", "0.3", "--epoch", "1"]
    for flag in (["--local_rank", "0"], ["--local-rank=0", "--overwrite"]):
        assert run(Toy(), flags=[*flags, *flag]) == [0]


def test_two_nodes(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY)
    flags = [*common(tmp_path / "toy.yaml", tmp_path / "out"), "--p", 0.3, "--epoch", 1]
    nodes = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    port = free_port()
    both = [start("-m", "tests.toy", *flags, nodes=[*nodes, f"--node_rank={rank}"], port=port) for rank in range(2)]
    first, second = map(finish, both)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "effective batch 16 = 8 x 2 processes" in first.stdout and "epoch" not in second.stdout
    assert len(read(tmp_path / "out" / "log.txt")) == 1


def test_a_launcher_that_is_told_to_stop_lets_its_processes_save(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY)
    flags = [*common(tmp_path / "toy.yaml", tmp_path / "out"), "--p", 0.3, "--num_workers", 1]
    launched = start("-m", "tests.toy", *flags, "--epoch", 100000)
    while "epoch 1 " not in launched.stdout.readline():
        assert launched.poll() is None
    launched.send_signal(signal.SIGTERM)
    stopped = finish(launched)
    assert stopped.returncode != 0
    said = re.search(r"stopped at step (\d) of epoch (\d+)", stopped.stdout)
    stored = checkpoint.read(tmp_path / "out" / "checkpoint_last.pth")
    if said:  # else it came between two epochs, where all is saved
        assert (stored["step"], stored["epoch"]) == (int(said[1]), int(said[2]))
    assert len(read(tmp_path / "out" / "log.txt")) in (stored["epoch"], stored["epoch"] + 1)
    assert not list((tmp_path / "out").glob("*.tmp"))
