"""Shared helpers: process groups by what they compute, meters without waiting, files that are whole."""

import errno
import math
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils
from madtp.budget import processes
from utils import UserError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_LOCALID", "SLURM_JOB_ID")

WORKER = """
import sys
from types import SimpleNamespace
import torch
import utils

args = SimpleNamespace(device="cpu", dist_url=sys.argv[1], world_size=1, distributed=None)
utils.init_distributed(args)
rank = utils.rank()
assert (args.world_size, args.distributed, utils.world_size()) == (2, True, 2)
assert utils.is_main() == (rank == 0)
mine = torch.tensor([1.0, 10.0 * rank])
assert utils.all_reduce_sum(mine).tolist() == [2.0, 10.0]
assert mine.tolist() == [1.0, 10.0 * rank]
assert utils.all_reduce_sum(2**40 + rank + 0.5) == 2**41 + 2
assert utils.all_gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
meters = utils.Meters()
meters.update(n=1 + 2 * rank, loss=torch.tensor(float(rank)))
meters.synchronize()
assert meters.means() == {"loss": 0.75} and meters["loss"].count == 4
utils.barrier()
utils.leave_distributed(together=True)
"""


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher, on top of none."""
    for name in LAUNCHER + SLURM:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


class TestProcesses:
    def test_two_processes(self, tmp_path):
        """The rank comes from torchrun's variables in one process and from SLURM's in the other."""
        common = {name: value for name, value in os.environ.items() if name not in LAUNCHER + SLURM}
        announced = [
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1"},
        ]
        command = [sys.executable, "-c", WORKER, f"file://{tmp_path}/meeting"]
        workers = [subprocess.Popen(command, env=common | mine, stderr=subprocess.PIPE) for mine in announced]
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors.decode()

    def test_plain_python_is_one_process(self, environment):
        args = SimpleNamespace(device="cpu", dist_url="env://", world_size=8, distributed=True)
        utils.init_distributed(args)
        assert (args.world_size, args.distributed) == (1, False)
        assert (utils.rank(), utils.world_size(), utils.is_main()) == (0, 1, True)
        utils.barrier()
        assert utils.all_reduce_sum(3.5) == 3.5
        assert utils.all_gather_objects("a") == ["a"]

    def test_torchrun_comes_before_slurm(self, environment):
        environment(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="9")
        assert processes._announced(1) == (3, 4, 1)

    def test_slurm(self, environment):
        environment(SLURM_PROCID="5", SLURM_STEP_NUM_TASKS="8", SLURM_LOCALID="1", SLURM_JOB_ID="123456")
        environment(SLURM_STEP_NODELIST="gpu-[07-09,12]")
        assert processes._announced(1) == (5, 8, 1)
        assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu-07", str(20000 + 3456))

    @pytest.mark.parametrize(
        "nodes, first", [("host", "host"), ("a1,a2", "a1"), ("a-[3,5],b", "a-3"), ("n[1-2]", "n1")]
    )
    def test_slurms_first_node(self, environment, nodes, first):
        environment(SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="2", SLURM_STEP_NODELIST=nodes)
        processes._announced(1)
        assert os.environ["MASTER_ADDR"] == first

    def test_a_batch_script_without_srun_is_one_process(self, environment):
        environment(SLURM_PROCID="0")
        assert processes._announced(1) == (0, 1, 0)
        assert processes._announced(4) == (0, 4, 0)  # the reference's way: --world_size says how many

    def test_more_processes_than_gpus(self, environment, monkeypatch):
        environment(RANK="2", WORLD_SIZE="3", LOCAL_RANK="2")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        args = SimpleNamespace(device="cuda", dist_url="env://", world_size=1, distributed=None)
        with pytest.raises(UserError, match="process 2 of this machine has no GPU, there are 2: .*NPROC"):
            utils.init_distributed(args)


def test_a_seed_repeats_every_draw():
    def draws():
        utils.set_seed(7)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first = draws()
    assert draws() == first
    utils.set_seed(8)
    assert torch.rand(1).item() != first[2]


def test_cosine_schedule():
    rates = [utils.cosine_lr(3.0, 1.0, step, 10) for step in range(11)]
    assert rates[0] == 3.0 and rates[5] == pytest.approx(2.0) and rates[10] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)
    assert all(rates[i] + rates[10 - i] == pytest.approx(4.0) for i in range(11))
    assert utils.cosine_lr(3.0, 1.0, 15, 10) == pytest.approx(1.0)
    assert utils.cosine_lr(3.0, 1.0, 0, 0) == 3.0


class TestMeters:
    def test_mean_is_weighted_by_samples(self):
        meters = utils.Meters()
        meters.update(n=3, loss=torch.tensor(1.0, requires_grad=True), accuracy=0.5)
        meters.update(n=1, loss=torch.tensor(5.0))
        assert meters.means() == {"loss": 2.0, "accuracy": 0.5}
        assert str(meters) == "loss 2  accuracy 0.5"
        meters.synchronize()
        assert meters.means() == {"loss": 2.0, "accuracy": 0.5}

    def test_tensors_are_not_read_before_the_mean_is(self):
        """On the meta device a number cannot be read at all: only an update that does not read passes."""
        meter = utils.AverageMeter()
        meter.update(torch.ones((), device="meta"), n=2)
        meter.update(torch.ones((), device="meta"))
        with pytest.raises(RuntimeError):
            _ = meter.mean

    def test_nothing_yet(self):
        assert math.isnan(utils.AverageMeter().mean)


class TestFiles:
    def test_text_replaces_the_old_file(self, tmp_path):
        path = tmp_path / "log.txt"
        for text in ("old and long", "né\n"):
            utils.write_atomic(path, text)
            assert path.read_text(encoding="utf-8") == text
        assert os.listdir(tmp_path) == ["log.txt"]

    def test_an_interrupted_write_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "log.txt"
        path.write_text("old")
        with pytest.raises(KeyboardInterrupt), utils.whole_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["log.txt"]

    def test_all_of_it_is_on_the_disk_before_it_takes_the_name(self, tmp_path, monkeypatch):
        path, seen = tmp_path / "log.txt", []
        monkeypatch.setattr(os, "fsync", lambda file: seen.append((os.fstat(file).st_size, path.exists())))
        utils.write_atomic(path, "text")
        assert seen == [(4, False)]

    def test_a_full_disk_says_so(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot write .*model.pth \(2.0 MiB\): .* free some space"):
            with utils.whole_file(tmp_path / "model.pth", size=2**21):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def test_other_errors_pass(self, tmp_path):
        with pytest.raises(RuntimeError, match="not about files"), utils.whole_file(tmp_path / "a"):
            raise RuntimeError("not about files")

    def test_output_folder(self, tmp_path):
        folder = utils.prepare_output(f"{tmp_path}/output/run")
        assert folder.is_dir() and not any(folder.iterdir())
        assert utils.prepare_output(folder) == folder

    @pytest.mark.parametrize("inner", ["file", "file/run"])
    def test_an_output_folder_that_is_a_file(self, tmp_path, inner):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=f"cannot write to .*{inner}: .*; choose another folder"):
            utils.prepare_output(tmp_path / inner)

    def test_an_output_folder_that_takes_no_files(self):
        with pytest.raises(UserError, match="cannot write to /proc: .*; choose another folder"):
            utils.prepare_output("/proc")
