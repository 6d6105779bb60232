"""What a machine can give: free cores by its own statistics, and a pace that is a number of times."""

import os
import subprocess
import sys

import pytest
import torch

from madtp.look import machine


def ticks(busy, idle):
    """Lines of the system's statistics, one core after the other."""
    cores = [f"cpu{core} {own} 0 0 {rest} 0 0 0" for core, (own, rest) in enumerate(zip(busy, idle, strict=True))]
    return "\n".join([f"cpu  {sum(busy)} 0 0 {sum(idle)} 0 0 0", *cores, "intr 1 2 3", "ctxt 4"])


def watched(monkeypatch, path, before, after, cores):
    """Free cores where the statistics change while they are watched."""
    path.write_text(ticks(*before))
    monkeypatch.setattr(machine, "STATISTICS", path)
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: path.write_text(ticks(*after)))
    return machine.free_cores()


@pytest.mark.parametrize(
    "busy, cores, free",
    [
        ([0, 0, 0, 0], [0, 1, 2, 3], 4),
        ([100, 0, 0, 0], [0, 1, 2, 3], 3),
        ([100, 100, 100, 100], [0, 1, 2, 3], 1),
        ([30, 40, 40, 100], [0, 1, 2, 3], 2),
        ([100, 100, 0, 0], [2, 3], 2),
        ([0, 0, 100, 100], [3], 1),
    ],
)
def test_cores_are_free_as_far_as_they_were_idle(monkeypatch, tmp_path, busy, cores, free):
    before = [50] * 4, [1000] * 4
    after = [50 + own for own in busy], [1000 + 100 - own for own in busy]
    assert watched(monkeypatch, tmp_path / "stat", before, after, cores) == free


def test_a_system_that_does_not_tell_has_all_its_cores_free(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "STATISTICS", tmp_path / "nothing")
    assert machine.free_cores() == len(machine.usable_cores()) == len(os.sched_getaffinity(0))


def test_cores_by_other_numbers_than_the_system_s_are_taken_for_free(monkeypatch, tmp_path):
    """As in a container, which may count its cores from 0 and be bound to those of its machine."""
    still = [50] * 4, [1000] * 4
    assert watched(monkeypatch, tmp_path / "stat", still, still, [2, 17]) == 2


def test_what_the_user_says_counts(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(machine, "free_cores", None)
    assert "as OMP_NUM_THREADS says" in machine.use_free_cores() and os.environ["OMP_NUM_THREADS"] == "7"


def test_processes_started_later_get_as_many_threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(machine, "free_cores", lambda: 3)
    try:
        assert machine.use_free_cores().startswith("3 threads") and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_the_pace_says_how_many_times_as_long(monkeypatch):
    now = iter(range(0, 2 * machine.STEPS * 10, 5))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(now))
    before = torch.get_num_threads()
    assert machine.pace() == pytest.approx(5 / machine.STEP_SECONDS) and torch.get_num_threads() == before


def test_scripts_read_a_number():
    code = "from madtp.look.machine import free_cores; print(free_cores())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 <= int(printed.stdout) <= len(os.sched_getaffinity(0)) and not printed.stderr
