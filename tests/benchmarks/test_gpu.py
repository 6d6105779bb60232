"""What is prepared for a GPU runs to its end without one, and says what it did not do."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import kernels
from benchmarks.gpu.grid import MODELS, compiled
from benchmarks.gpu.lines import GPU, Lines, Part, missing
from benchmarks.workload import TASKS
from madtp.method import layout, merged
from utils import SIGNALS

ROOT = Path(__file__).parents[2]
PARTS = {
    "kernels": {f"{way} {dtype} 2x2x35x32" for way in ("forward", "backward") for dtype in kernels.DTYPES},
    "tasks": {"data", "nlvr batch", "retrieval batch", "caption sample", "clip sample", "vqa coverage"}
    | {"stopped and resumed batch"},
    "memory": {f"{name} {part}" for name in MODELS for part in ("model", "inference 2", "training 2")},
    "speed": {f"{name} compiled {part}" for name in MODELS for part in ("inference 2", "training 2")},
}
PARTS["speed"] |= PARTS["memory"]
PARTS["speed"] |= {
    f"layer {name} {way}" for name in ("dense", "pruned", "coverage") for way in ("forward", "backward and forward")
}
NEED_A_GPU = ("forward bf16", "forward fp16", "nlvr compiled", "clip compiled")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("section", PARTS)
def test_every_section_runs_to_its_end_without_a_gpu(section, tmp_path):
    path, signals = tmp_path / "new" / "lines.jsonl", [signal.getsignal(number) for number in SIGNALS]
    gpu.main([section, "--output", str(path), "--seconds", "600"])
    machine, *rows = rows_of(path)
    assert machine["part"] == "machine" and machine["torch"] == torch.__version__
    assert {row["part"] for row in rows} == PARTS[section]
    assert not [row for row in rows if "failed" in row]
    skipped = {row["part"] for row in rows if "skipped" in row and GPU in row["skipped"]}
    assert skipped == {part for part in PARTS[section] if part.startswith(NEED_A_GPU)}
    if section == "tasks":
        assert {row["part"].partition(" ")[0] for row in rows} == {"data", *TASKS, "stopped"}
        assert [row["equal"] for row in rows if "equal" in row] == [True]
        assert [signal.getsignal(number) for number in SIGNALS] == signals
    if section in ("memory", "speed"):
        names = {(row["task"], row["train"], row["name"]) for row in rows if "task" in row}
        sides = ("dense", "pruned", "plain", "coverage")
        assert names == {(task, train, side) for task in MODELS for train in (False, True) for side in sides}


def test_what_is_left_uncompiled_is_there_and_comes_back():
    layers = torch.nn.ModuleList([torch.nn.Identity()])
    before = layout.attend, merged.attend, merged.attend_with_class
    with compiled(layers):
        assert merged.attend_with_class is not before[2] and layers[0]._compiled_call_impl is not None
    assert (layout.attend, merged.attend, merged.attend_with_class) == before
    assert layers[0]._compiled_call_impl is None


def test_a_part_that_fails_or_lacks_something_is_a_line_and_the_others_run(tmp_path):
    lines = Lines(tmp_path / "lines", "kernels", "cpu", time.time() + 60)
    late = Lines(tmp_path / "lines", "kernels", "cpu", time.time() - 1)
    lines.run(
        [Part("bad", lambda: [1 / 0]), Part("absent", list, ("no_such_package",)), Part("good", lambda: [{"x": 1}])]
    )
    late.run([Part("late", lambda: [{"x": 2}])])
    bad, absent, good, _, late = rows_of(tmp_path / "lines")
    assert bad["failed"].startswith("ZeroDivisionError") and absent["skipped"] == "needs no_such_package"
    assert good == {"section": "kernels", "part": "good", "x": 1} and late["skipped"].startswith("no time")


def test_what_is_missing_is_told_from_what_is_there():
    assert missing(["torch", "no_such_package"]) == ["no_such_package"]
    assert missing([GPU]) == [GPU]


def test_wrong_gradients_do_not_agree(monkeypatch):
    shape = (2, 2, 9, 8)
    assert all(row["agrees"] for row in kernels.backward(shape, torch.bfloat16, "cpu"))
    right = kernels.BlockwiseAttention.apply
    wrong = type("Wrong", (), {"apply": lambda q, k, *others: right(q, 1.1 * k, *others)})
    monkeypatch.setattr(kernels, "BlockwiseAttention", wrong)
    assert not any(row["agrees"] for row in kernels.backward(shape, torch.bfloat16, "cpu"))


def launch(tmp_path: Path, *words: str, **variables: str) -> tuple[int, list[str]]:
    """What gpu.sh asks of an interpreter that only writes it down, section by section."""
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\n[ "$1" = -c ] || echo "$4" >>{tmp_path}/asked\n[ "$4" != tasks ]\n')
    fake.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(fake), "OUTPUT": str(tmp_path / "lines"), **variables}
    done = subprocess.run(["bash", str(ROOT / "benchmarks/gpu.sh"), *words], env=environment, capture_output=True)
    asked = tmp_path / "asked"
    return done.returncode, asked.read_text().split() if asked.exists() else []


def test_the_script_goes_through_its_sections_whatever_becomes_of_one(tmp_path):
    assert launch(tmp_path) == (0, ["kernels", "tasks", "speed"])


def test_the_script_runs_the_section_that_is_named(tmp_path):
    assert launch(tmp_path, "memory") == (0, ["memory"])


def test_the_script_knows_its_sections_and_its_time(tmp_path):
    assert launch(tmp_path, "everything") == (2, [])
    assert launch(tmp_path, SECONDS_IN_ALL="3") == (0, [])
