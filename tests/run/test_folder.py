"""A run's folder: nothing of an earlier run is replaced unasked, and no two runs write into one at a time."""

import errno
import multiprocessing
import os
import signal
import time
from argparse import Namespace
from io import FileIO

import pytest

from madtp.method.errors import UserError
from madtp.run import folder as folders
from madtp.run.folder import left_behind, owned
from madtp.shared.run_files import BEST, LAST, LOCK, LOG
from madtp.shared.weights import checkpoint
from tests.processes import run
from tests.toy import Toy

CONFIG = "{batch_size_train: 8, batch_size_test: 8, max_epoch: 2, init_lr: 0.05, calibration_batches: 3, ramp: 0}"


@pytest.fixture
def train(tmp_path):
    """Runs the toy task into `out`; the exit status."""
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def train(*flags, out="out", task=None):
        common = ["--config", tmp_path / "toy.yaml", "--output_dir", tmp_path / out, "--device", "cpu", "--p", 0.3]
        (status,) = run(task or Toy(), flags=[*common, "--num_workers", 0, *flags])
        return status

    train.folder = tmp_path / "out"
    return train


def contents(folder):
    return {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.is_file() and file.name not in ("train.log", LOCK)
    }


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_same_command_again_is_refused_and_leaves_everything(train, capfd, epochs):
    class Stopped(Toy):
        def losses(self, model, batch, temperature, progress):
            if progress == epochs:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().losses(model, batch, temperature, progress)

    assert train(task=Stopped()) == (143 if epochs == 1 else 0)
    before = contents(train.folder)
    assert {LOG, BEST, LAST} <= before.keys()
    capfd.readouterr()
    assert train() == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {train.folder} holds {LOG} and {BEST} and {LAST} of an earlier run: ")
    assert "--resume goes on" in error and "--overwrite replaces" in error and error.count("\n") == 1
    assert contents(train.folder) == before
    assert train("--evaluate", "--pretrained", train.folder / BEST) == 0
    assert {name: file for name, file in contents(train.folder).items() if name in before} == before
    assert train("--resume") == 0


def test_overwriting_begins_anew_also_from_what_is_overwritten(train):
    assert train() == 0
    old = checkpoint.read(train.folder / BEST)
    best = train.folder / BEST
    assert train("--overwrite", "--pretrained", best, "--epoch", 1, "--set", "init_lr=0") == 0
    assert len((train.folder / LOG).read_text().splitlines()) == 1
    new = checkpoint.read(train.folder / LAST)
    assert new["epoch"] == 1 and all((new["model"][name] == weight).all() for name, weight in old["model"].items())


def test_what_is_overwritten_is_gone_before_the_new_run_is_killed(train):
    class Killed(Toy):
        def losses(self, *inputs, **named):
            os.kill(os.getpid(), signal.SIGKILL)

    assert train() == 0
    assert train("--overwrite", task=Killed()) == -9
    assert left_behind(train.folder) == [], "--resume would go on with the run that was to be replaced"


@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_without_a_checkpoint_to_resume(train, capfd, flags):
    assert train() == 0
    (train.folder / LAST).unlink()
    assert train(*flags) == 2
    assert f"there is no {LAST} for --resume to go on from, --overwrite replaces it" in capfd.readouterr().err


def test_what_cannot_be_resumed_is_named_with_the_way_out(train, capfd):
    assert train() == 0
    last = train.folder / LAST
    for path, said in (
        (train.folder / "nowhere", "is no file"),
        (train.folder / BEST, "holds weights and no run to go on with"),
        (last, "is not a checkpoint or is damaged"),
    ):
        if path == last:
            path.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
        capfd.readouterr()
        assert train("--resume", path, "--resume_anyway") == 2
        error = capfd.readouterr().err
        assert f"error: --resume: {path}" in error and said in error and error.count("\n") == 1
        assert error.endswith(f"{LAST}, or begin anew from weights with --pretrained\n")


def test_a_run_from_another_folder_does_not_replace_one(train, capfd):
    assert train() == 0 and train(out="other") == 0
    other = train.folder.parent / "other" / LAST
    assert train("--resume", other) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert train("--resume", other, out="third") == 0
    assert train("--resume", other.parent, out="fourth") == 0, "a folder stands for its last checkpoint"
    assert train("--resume", train.folder / LAST) == 0


def test_going_on_with_a_run_and_replacing_it_contradict_each_other(train, capfd):
    assert train("--resume", "--overwrite") == 2, "also where there is nothing yet, or the same command fails later"
    assert train() == 0 and train(out="other") == 0
    before = contents(train.folder)
    for request in ("auto", train.folder, train.folder / LAST):
        capfd.readouterr()
        assert train("--resume", request, "--overwrite") == 2
        assert "--overwrite replaces it; leave one out" in capfd.readouterr().err
    assert contents(train.folder) == before
    assert train("--resume", train.folder, "--overwrite", out="other") == 0, "another run takes this one's place"


@pytest.mark.parametrize("flags", [("--set", "weight_decay=0.3"), ("--seed", 7), ("--controller", "ladder")])
def test_what_is_refused_leaves_the_folder_as_it_was(train, flags):
    assert train() == 0
    before = contents(train.folder)
    assert train("--resume", *flags) == 2
    assert contents(train.folder) == before, "config.yaml would tell of a run that never was"


def test_a_run_that_never_began_leaves_nothing_to_replace(train):
    assert train("--p", 0.99) == 2, "out of reach"
    assert train() == 0


# The lock.


def hold(folder, begun, end, rest):
    """Trains for a while: holds the folder until told to end, or, its first process killed, for another `rest`."""
    with owned(folder, Namespace(evaluate=False, resume=None, overwrite=False)):
        if os.fork() == 0:  # as a data worker, which inherits what is open
            time.sleep(rest)
            os._exit(0)
        begun.set()
        end.wait()


@pytest.fixture
def held(tmp_path):
    """A process that holds `tmp_path`."""
    context = multiprocessing.get_context("fork")
    begun, end = context.Event(), context.Event()

    def held(rest):
        process = context.Process(target=hold, args=(tmp_path, begun, end, rest))
        process.start()
        assert begun.wait(30)
        held.process = process
        return process, end

    yield held
    held.process.kill()


def claim(folder, **flags):
    with owned(folder, Namespace(**{"evaluate": False, "resume": None, "overwrite": False} | flags)):
        return time.monotonic()


def test_a_second_run_is_refused_at_once_and_may_begin_after_the_first(held, tmp_path):
    process, end = held(rest=5)
    started = time.monotonic()
    with pytest.raises(UserError, match=f"another run is writing to .* \\(process {process.pid} on .*--output_dir"):
        claim(tmp_path, overwrite=True)
    assert time.monotonic() - started < 5
    claim(tmp_path, evaluate=True)
    end.set()
    process.join()
    claim(tmp_path)


def test_it_dies_with_the_last_process_also_by_sigkill(held, tmp_path, monkeypatch):
    process, _ = held(rest=2)
    started = time.monotonic()
    process.kill()
    process.join()
    monkeypatch.setattr(folders, "HANDOVER", 0.0)
    with pytest.raises(UserError, match="another run"):
        claim(tmp_path)
    monkeypatch.setattr(folders, "HANDOVER", 30.0)
    assert claim(tmp_path) - started > 1, "the worker still held it"


def test_all_processes_of_a_run_hold_it(tmp_path):
    (tmp_path / "toy.yaml").write_text(CONFIG)
    flags = ["--config", tmp_path / "toy.yaml", "--output_dir", tmp_path / "out", "--device", "cpu", "--num_workers", 0]

    class Trying(Toy):
        def losses(self, model, batch, temperature, progress):
            if progress == 0:
                with open(tmp_path / "out" / LOCK) as file:
                    assert len([line for line in locks() if line == os.fstat(file.fileno()).st_ino]) == 2
            return super().losses(model, batch, temperature, progress)

    assert run(Trying(), Trying(), flags=[*flags, "--p", 0]) == [0, 0]


def locks():
    """The files that are locked, once for each holder."""
    with open("/proc/locks") as file:
        return [int(line.split(":")[-1].split()[0]) for line in file if "FLOCK" in line]


def test_a_disk_without_room_for_a_name_is_said(tmp_path, monkeypatch):
    class Full(FileIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "_opened", lambda path: Full(path, "a+"))
    with pytest.raises(UserError, match=f"cannot write {tmp_path / LOCK}: No space left on device; free some space"):
        claim(tmp_path)


def test_a_file_system_without_locks_does_without(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folders.fcntl, "flock", no_locks)
    claim(tmp_path)
    monkeypatch.setattr(folders, "fcntl", None)
    claim(tmp_path)
