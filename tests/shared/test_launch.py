"""Processes that meet as a launcher announces them, and what they tell each other."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import utils
from madtp.shared import launch
from utils import UserError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_LOCALID", "SLURM_JOB_ID")

WORKER = """
import sys
from types import SimpleNamespace
import torch
import utils
from madtp.shared.launch import init_distributed, leave_distributed

args = SimpleNamespace(device="cpu", dist_url=sys.argv[1], world_size=1, distributed=None)
init_distributed(args)
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
leave_distributed(together=True)
"""


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher, on top of none."""
    for name in LAUNCHER + SLURM:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_two_processes(tmp_path):
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


def test_plain_python_is_one_process(environment):
    args = SimpleNamespace(device="cpu", dist_url="env://", world_size=8, distributed=True)
    launch.init_distributed(args)
    assert (args.world_size, args.distributed) == (1, False)
    assert (utils.rank(), utils.world_size(), utils.is_main()) == (0, 1, True)
    utils.barrier()
    assert utils.all_reduce_sum(3.5) == 3.5
    assert utils.all_gather_objects("a") == ["a"]


def test_torchrun_comes_before_slurm(environment):
    environment(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="9")
    assert launch._announced(1) == (3, 4, 1)


def test_slurm(environment):
    environment(SLURM_PROCID="5", SLURM_STEP_NUM_TASKS="8", SLURM_LOCALID="1", SLURM_JOB_ID="123456")
    environment(SLURM_STEP_NODELIST="gpu-[07-09,12]")
    assert launch._announced(1) == (5, 8, 1)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu-07", str(20000 + 3456))


@pytest.mark.parametrize("nodes, first", [("host", "host"), ("a1,a2", "a1"), ("a-[3,5],b", "a-3"), ("n[1-2]", "n1")])
def test_slurms_first_node(environment, nodes, first):
    environment(SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="2", SLURM_STEP_NODELIST=nodes)
    launch._announced(1)
    assert os.environ["MASTER_ADDR"] == first


def test_a_batch_script_without_srun_is_one_process(environment):
    environment(SLURM_PROCID="0")
    assert launch._announced(1) == (0, 1, 0)
    assert launch._announced(4) == (0, 4, 0)  # the reference's way: --world_size says how many


def test_more_processes_than_gpus(environment, monkeypatch):
    environment(RANK="2", WORLD_SIZE="3", LOCAL_RANK="2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = SimpleNamespace(device="cuda", dist_url="env://", world_size=1, distributed=None)
    with pytest.raises(UserError, match="process 2 of this machine has no GPU, there are 2: .*NPROC"):
        launch.init_distributed(args)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', expected the number that a launcher sets; unset it"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is '', expected the number"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2(x3)"}, r"SLURM_STEP_NUM_TASKS is '2\(x3\)', expected"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "this is process 2 of 2 by the launcher's variables; they count from 0"),
    ],
)
def test_variables_that_cannot_be_are_named(environment, values, said):
    """Who is one too many would wait for ever."""
    environment(**values)
    args = SimpleNamespace(device="cpu", dist_url="env://", world_size=1, distributed=None)
    with pytest.raises(UserError, match=said):
        launch.init_distributed(args)
