"""Workers that cannot start, deliver or live end a run in one line within seconds; signals end it in every phase."""

import ctypes
import errno
import multiprocessing
import os
import resource
import signal
import sys
import time

import pytest
import torch

from data.workers import reason
from madtp.run import engine
from madtp.run.interruption import ECHO, Interrupted, Interruption
from madtp.shared.weights import checkpoint
from tests.processes import run
from tests.run.test_resume import equal, result
from tests.toy import Points, Toy

CONFIG = "{batch_size_train: 8, batch_size_test: 8, max_epoch: 2, init_lr: 0.05, calibration_batches: 3, ramp: 0}"
SECONDS = 60  # that an end may take, on a machine that has other things to do; it takes about three
NEW_MOUNTS = 0x20000


class Troubled(Toy):
    """A toy task that prepares its process, and whose data sets do something before a sample is read."""

    def __init__(self, prepare=lambda: None, sample=lambda split, key: None):
        self.prepare, self.sample = prepare, sample

    def datasets(self, evaluate):
        self.prepare()
        sets = zip(("train", "val", "test"), super().datasets(evaluate), strict=True)
        return [points and TroubledPoints(points, split, self.sample) for split, points in sets]


class TroubledPoints(Points):
    def __init__(self, points, split, sample):
        self.points, self.split, self.sample = points.points, split, sample

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item | (self.sample(self.split, index) or {})


@pytest.fixture
def train(tmp_path, capfd):
    """Runs a task; the exit status and what it wrote as errors. Fails if that took long."""
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def train(*tasks, flags=(), workers=2, out="out"):
        common = ["--config", tmp_path / "toy.yaml", "--output_dir", tmp_path / out, "--device", "cpu", "--p", 0.3]
        capfd.readouterr()
        started = time.monotonic()
        statuses = run(*tasks, flags=[*common, "--num_workers", workers, *flags])
        assert time.monotonic() - started < SECONDS
        return statuses[0], capfd.readouterr().err

    return train


def one_line(status, errors, *parts):
    assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert "--num_workers 0" in errors and all(part in errors for part in parts), errors


def large(split, index):
    return {"more": torch.zeros(2**17)}  # 4 MiB in a batch


# What a worker lacks.


def test_shared_memory_that_is_full(train):
    def mount():
        """Gives this process a shared memory of 1 MiB, as a container has one of 64."""
        libc = ctypes.CDLL(None, use_errno=True)
        small = ctypes.c_char_p(b"size=1M")
        if libc.unshare(NEW_MOUNTS) or libc.mount(b"none", b"/", None, 0x44000, None):  # private, all the way down
            os._exit(77)
        if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, small):
            os._exit(77)

    status, errors = train(Troubled(mount, large))
    if status == 77:
        pytest.skip("this process may not mount anything")
    one_line(status, errors, "a batch of 4 MiB", "No space left", "/dev/shm holds 1 MiB", "--shm-size")


def test_a_batch_that_cannot_be_put_into_shared_memory(train):
    status, errors = train(Troubled(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)), large))
    one_line(status, errors, "a batch of 4 MiB", "File too large")


@pytest.mark.parametrize("more", [2, 12, 22, 30])
def test_too_few_open_files(train, more):
    def lower():
        used = set(map(int, os.listdir("/proc/self/fd")))
        free = [number for number in range(1000) if number not in used]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[more], free[more]))

    one_line(*train(Troubled(lower), workers=4), "Too many open files", "ulimit -n")


def test_what_lacks_is_named_with_the_way_out():
    assert "--shm-size" in reason(RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Full (28)"))
    assert "ulimit -u" in reason(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"))
    assert "ulimit -n" in reason(RuntimeError("received 0 items of ancdata"))
    assert reason(RuntimeError("can't start\nnew thread")).startswith("can't start new thread; use fewer workers")


# A worker that dies.


def kill_a_worker():
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    time.sleep(SECONDS)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_worker_killed_while_it_reads(train, split):
    def kill(own, index):
        if own == split and index > 10:
            os.kill(os.getpid(), signal.SIGKILL)

    one_line(*train(Troubled(sample=kill)), "SIGKILL", "memory")


@pytest.mark.parametrize("method", ["losses", "metrics"])
def test_a_worker_killed_while_the_run_does_something_else(train, method):
    task = Troubled()
    setattr(task, method, lambda *inputs, **named: kill_a_worker())
    one_line(*train(task), "SIGKILL", "memory")


def test_a_worker_that_ends_by_itself(train):
    one_line(*train(Troubled(sample=lambda split, index: os._exit(3))), "ended with status 3")


class ElsewhereToy(Toy):
    """A toy task on a system that has no signal for the end of a child, as Windows."""

    def score(self, metrics):
        vars(signal).pop("SIGCHLD", None)
        return super().score(metrics)


def test_workers_end_where_no_signal_tells_of_it(train):
    assert train(ElsewhereToy()) == (0, "")


def test_what_a_data_set_raises_keeps_its_traceback(train):
    def fail(split, index):
        raise RuntimeError("of the data set's own")

    status, errors = train(Troubled(sample=fail))
    assert status == 1 and "Traceback" in errors and "of the data set's own" in errors


# Signals.


def stuck(split, after=0, number=signal.SIGTERM):
    """Data that never come, as from a disk in the network that is gone; everyone is signalled, as by a terminal."""
    read = []

    def sample(own, index):
        if own == split:
            read.append(index)
        if len(read) > after:
            os.killpg(os.getpgrp(), number)
            time.sleep(600)

    return Troubled(os.setpgrp, sample)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["val", "train", "test"])
def test_signals_while_data_never_come(train, split, workers):
    """While the controller calibrates (on val), while the first batch of training is awaited, in the evaluation."""
    number, status = (signal.SIGTERM, 143) if workers else (signal.SIGINT, 130)
    assert train(stuck(split, number=number), workers=workers) == (status, "")


@pytest.mark.parametrize("workers", [0, 2])
def test_signals_in_an_evaluation_alone(train, tmp_path, workers):
    assert train(Toy(), flags=["--epoch", 1], workers=0)[0] == 0
    flags = ["--evaluate", "--pretrained", tmp_path / "out" / "checkpoint_best.pth"]
    assert train(stuck("test", after=9), flags=flags, workers=workers) == (143, "")


@pytest.mark.parametrize("workers", [0, 1])
def test_between_two_steps_nothing_is_lost(train, tmp_path, workers):
    assert train(stuck("train", after=6 * 8 + 2 * 8), workers=workers) == (143, "")
    assert checkpoint.read(tmp_path / "out" / "checkpoint_last.pth")["epoch"] == 1
    assert train(Toy(), flags=["--resume"], workers=0) == (0, "") == train(Toy(), workers=0, out="whole")
    assert equal(result(tmp_path / "out"), result(tmp_path / "whole"))


def test_within_a_step_it_gets_some_time_and_what_was_saved_stays(train, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BATCH_GRACE", 1.0)
    task = stuck("train", after=8)  # one batch is there, of two that make a step
    assert train(task, flags=["--accum", 2], workers=0) == (143, "")
    assert not (tmp_path / "out" / "checkpoint_last.pth").exists()


def test_a_signal_that_got_lost_can_be_sent_again():
    """In a forked process: the signals stay ignored for who is leaving."""

    def deaf():
        heard = 0
        try:
            with Interruption():
                for wait in (0, 0, ECHO + 0.1):
                    time.sleep(wait)
                    try:
                        signal.raise_signal(signal.SIGINT)
                    except Interrupted:  # as code does from which no exception can leave, a destructor for one
                        heard += 1
                signal.raise_signal(signal.SIGTERM)  # an echo
        finally:
            sys.exit(heard)

    process = multiprocessing.get_context("fork").Process(target=deaf)
    process.start()
    process.join()
    assert process.exitcode == 2
