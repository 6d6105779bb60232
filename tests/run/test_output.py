"""What a run writes: whole files on a full disk, the same log for the same seed, and how it was made."""

import errno
import io
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch

from madtp.method.errors import UserError, as_user_error
from madtp.run.engine import main
from madtp.run.output import start_log, write_results
from madtp.shared.weights import checkpoint
from tests.processes import run
from tests.toy import Points, Toy

TOY = "{batch_size_train: 8, batch_size_test: 8, max_epoch: 2, init_lr: 0.05, calibration_batches: 3}"


@pytest.fixture
def flags(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY)
    common = ["--config", tmp_path / "toy.yaml", "--device", "cpu", "--p", 0.3]
    return lambda out, *more: [*common, "--output_dir", tmp_path / out, "--num_workers", 0, *more]


class DiskFills(Toy):
    """A toy task that finds the disk full when, in its second epoch, a file of this name is written."""

    def __init__(self, path):
        self.path = path

    def losses(self, model, batch, temperature, progress):
        if progress == 1:
            self.path.with_name(self.path.name + ".tmp").symlink_to("/dev/full")
        return super().losses(model, batch, temperature, progress)


@pytest.mark.parametrize("name", ["checkpoint_last.pth", "checkpoint_best.pth", "log.txt"])
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, flags, capfd, name):
    path = tmp_path / "out" / name
    assert run(DiskFills(path), flags=flags("out", "--set", "ramp=0")) == [2]
    error = capfd.readouterr().err
    assert error.startswith(f"error: cannot write {path}") and "No space left on device; free some space" in error
    assert error.count("\n") == 1 and re.search(r" \(\d+ bytes\): ", error)
    assert not list(path.parent.glob("*.tmp"))
    if name == "log.txt":
        assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0]
    else:
        assert checkpoint.read(path)["epoch"] == (1 if "last" in name else 0)
    assert run(Toy(), flags=flags("out", "--set", "ramp=0", "--resume")) == [0]
    assert len((path.parent / "log.txt").read_text().splitlines()) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is always full")
def test_a_log_that_cannot_be_written_on_is_said_once(tmp_path, flags, capfd):
    """On a disk without a byte left, or with one that is left until the run is over."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.log").symlink_to("/dev/full")
    assert run(Toy(), flags=flags("out")) == [0]
    said = f"{tmp_path / 'out' / 'train.log'} is not written on: [Errno 28] No space left on device\n"
    assert capfd.readouterr().err == said
    assert len((tmp_path / "out" / "log.txt").read_text().splitlines()) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is always full")
@pytest.mark.parametrize("buffering", [1, -1])
def test_an_output_that_cannot_be_written_is_said_once(tmp_path, flags, capfd, monkeypatch, buffering):
    """The run goes on: its folder may be elsewhere."""
    with open("/dev/full", "w", buffering) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(Toy(), [*map(str, flags("out"))]) == 0
    assert capfd.readouterr().err == "the standard output is not written on: [Errno 28] No space left on device\n"
    said = (tmp_path / "out" / "train.log").read_text()
    assert "effective batch 8" in said and len((tmp_path / "out" / "log.txt").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["train.log", "log.txt"])
def test_a_log_that_cannot_be_opened_is_one_line(tmp_path, flags, capfd, name):
    """It may be another user's."""
    (tmp_path / "out" / name).mkdir(parents=True)
    assert run(Toy(), flags=flags("out", "--overwrite")) == [2]
    error = capfd.readouterr().err
    assert error.startswith("error: ") and f"{tmp_path / 'out' / name}" in error and error.count("\n") == 1


class Greedy(Toy):
    """A toy task that takes more memory than there is anywhere."""

    def losses(self, model, batch, temperature, progress):
        return torch.empty(2**50)


def test_memory_that_runs_out_is_one_line(tmp_path, flags, capfd):
    assert run(Greedy(), flags=flags("out")) == [2]
    error = capfd.readouterr().err
    size = 2**52
    assert error.startswith(
        f"error: the memory of this machine ran out (tried to allocate {size} bytes); smaller batches"
    )
    assert error.count("\n") == 1


def test_errors_of_the_user_are_told_from_others():
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 3.00 MiB free.")
    assert str(as_user_error(cuda)).startswith("the memory of the GPU ran out (Tried to allocate 2.00 GiB); smaller ")
    taken = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
    assert str(as_user_error(taken)).startswith("the memory of the GPU ran out; smaller ")
    windows = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes.")
    assert str(as_user_error(windows)).startswith("the memory of this machine ran out (tried to allocate 4096 bytes); ")
    with pytest.raises(RuntimeError) as beyond:
        torch.empty(2**31, 2**31)
    assert str(as_user_error(beyond.value)).startswith("the memory of this machine ran out; smaller ")
    assert str(as_user_error(MemoryError())).startswith("the memory of this machine ran out; smaller ")
    denied = PermissionError(errno.EACCES, "Permission denied", "/home/other/a.pth")
    assert str(as_user_error(denied)).startswith("/home/other/a.pth: Permission denied; give a path ")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert str(as_user_error(full)).endswith("output goes: No space left on device; free some space")
    assert as_user_error(FileNotFoundError(errno.ENOENT, "No such file", "a")) is None
    assert as_user_error(RuntimeError("shapes differ")) is None and as_user_error(UserError("a")).args == ("a",)


class NoisyPoints(Points):
    """Points that are shaken anew in every epoch, as pictures are."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item | {"point": item["point"] + torch.randn(4) * 0.1 + random.random()}


class Noisy(Toy):
    """A toy task with augmented data."""

    def datasets(self, evaluate):
        return NoisyPoints(48, 0), Points(37, 1), Points(20, 2)


def log(folder):
    """The log without what a stopwatch says."""
    records = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    return [{name: value for name, value in record.items() if "second" not in name} for record in records]


@pytest.mark.parametrize("line", [b"5", b'{"a": 1}', b'{"epoch"', b"\xff\xfe\x00"])
def test_a_log_that_is_none_is_named_and_left(tmp_path, line):
    (tmp_path / "log.txt").write_bytes(line)
    with pytest.raises(UserError, match=f"{tmp_path}/log.txt is no log of a run here, or damaged"):
        start_log(tmp_path, 1)
    assert (tmp_path / "log.txt").read_bytes() == line


def test_an_earlier_log_that_was_given_up_is_not_read(tmp_path, flags):
    """Neither by a run that begins anew nor by one that goes on from elsewhere, whose epochs it has not."""
    assert run(Toy(), flags=flags("first")) == [0]
    for out, more in {"anew": [], "elsewhere": ["--resume", tmp_path / "first" / "checkpoint_last.pth"]}.items():
        (tmp_path / out).mkdir()
        (tmp_path / out / "log.txt").write_text('{"epoch": 0, "of": "another run"}\nnot JSON\n')
        assert run(Toy(), flags=flags(out, *more, "--overwrite")) == [0]
        assert not any("of" in record for record in log(tmp_path / out))


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "result").touch()
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}/result"):
        write_results(tmp_path, "test", [])


@pytest.mark.parametrize("processes", [1, 2])
def test_one_seed_gives_one_log(tmp_path, flags, processes):
    for out, more in (
        ("one", []),
        ("again", []),
        ("workers", ["--num_workers", 2]),
        ("deterministic", ["--deterministic"]),
        ("other", ["--seed", 1]),
    ):
        assert run(*[Noisy() for _ in range(processes)], flags=flags(out, *more)) == [0] * processes
    for out in ("again", "workers", "deterministic"):
        assert log(tmp_path / out) == log(tmp_path / "one"), out
    assert log(tmp_path / "other") != log(tmp_path / "one")


def test_deterministic_asks_torch_for_it(tmp_path, flags):
    class Asking(Toy):
        def losses(self, *args, **keywords):
            assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
            return super().losses(*args, **keywords)

    assert run(Asking(), flags=flags("out", "--deterministic")) == [0]
    assert run(Asking(), flags=flags("without")) == [1]


def test_a_terminal_without_the_letters_of_a_path(tmp_path, flags, monkeypatch):
    """As under LC_ALL=POSIX where UTF-8 is off: the streams are ASCII, and names come as bytes that are no letters."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True))
    out = "\udcc3\udca9, \udce9, \N{SNOWMAN}"
    monkeypatch.setattr(sys, "argv", ["toy.py", "--output_dir", out])
    assert main(Toy(), [*map(str, flags(out, "--epoch", 1))]) == 0
    assert b"effective batch 8" in sys.stdout.buffer.getvalue() and not sys.stderr.buffer.getvalue()
    assert b"\xc3\xa9, \xe9, \xe2\x98\x83" in (tmp_path / out / "environment.txt").read_bytes()
    assert main(Toy(), [*map(str, flags(out)), "--pretrained", f"{out}.pth", "--evaluate"]) == 2
    assert sys.stderr.buffer.getvalue().startswith(b"error: ") and b"\\u2603" in sys.stderr.buffer.getvalue()
