"""What a user gets wrong is one line with the way out, before anything is measured."""

import json
import sys
from importlib import import_module

import pytest
import torch

from benchmarks.experiment.__main__ import main as experiment
from benchmarks.photos.__main__ import main as photos
from benchmarks.timing import environment, told

WRONG = {
    "bench_model --task nlvr --p 0.5 1.5": "--p is 1.5, expected a share",
    "bench_prepared --p 0": "--p is 0, expected a share",
    "bench_prepared --small --p 0.5 --rounds 1": "p 0.5 is out of reach",
    "bench_attention --threads 0": "--threads is 0, expected at least 1",
    "bench_data --batch 0": "--batch is 0, expected at least 1",
    "bench_single --device gpu": "--device is 'gpu', expected cpu, cuda or cuda:NUMBER",
    "bench_coverage --output /proc/rows.jsonl": "cannot write to /proc: ",
    "bench_library --pictures absent --first 5 --number 4 --search 1": "absent has 0 .jpg, and 9 are asked for",
    "bench_library --pictures absent --number 0 --search 0": "--search is 0, expected at least 1",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_benchmark_ends_in_one_line(words, monkeypatch, capsys):
    module, *_ = words.split()
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(SystemExit, match="2"):
        told(import_module(f"benchmarks.{module}").main)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and WRONG[words] in line


@pytest.mark.parametrize("main", [experiment, photos])
def test_an_experiment_says_what_it_can_do_and_what_p_may_be(main, capsys):
    assert main([]) == 2 and "nothing to do: give " in capsys.readouterr().err
    assert main(["--task", "vqa", "--p", "1"]) == 2 and "--p is 1, expected a share" in capsys.readouterr().err


def test_a_rule_that_there_is_not_is_no_plan_without_rules(capsys):
    with pytest.raises(SystemExit, match="2"):
        photos(["--task", "vqa", "--rules", "tom"])
    assert "invalid choice: 'tom'" in capsys.readouterr().err


def test_what_is_left_when_the_time_is_up_is_said(tmp_path, capsys):
    """Two models to compare, and before them two dense ones and a captioner."""
    places = [f"--{name}={tmp_path / name}" for name in ("data", "output", "results")]
    words = (
        "--task vqa --methods madtp --p 0.5 --seeds 1 2 --minutes 0".split()
    )  # after a captioner and two dense models
    assert experiment([*words, *places]) == 1
    assert capsys.readouterr().out == "5 configurations are left; the same command goes on with them\n"


@pytest.mark.parametrize(
    "words", ["bench_model --task nlvr --small", "bench_prepared --small", "bench_profile --small"]
)
def test_small_alone_runs_to_its_end_and_prunes(words, monkeypatch, capsys):
    module = import_module(f"benchmarks.{words.split()[0]}")
    monkeypatch.setattr(sys, "argv", words.split())
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # other tests come after this one
    module.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert rows[0]["name"] == "dense" and (rows[1]["name"], rows[1]["p"]) == ("pruned", 0.3)


def test_a_line_says_what_was_run_and_nothing_of_where_it_was_written(monkeypatch):
    for output in (["--output", "somebody/lines.jsonl"], ["--output=somebody/lines.jsonl"]):
        monkeypatch.setattr("sys.argv", ["benchmarks/bench_model.py", "--task", "nlvr", *output, "--p", "0.5"])
        assert environment("cpu")["command"] == "python -m benchmarks.bench_model --task nlvr --p 0.5"
