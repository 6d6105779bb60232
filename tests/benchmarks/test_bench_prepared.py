"""The benchmark of prepared layers compares the same model with them and without."""

import json
import sys

import torch

from benchmarks import bench_prepared
from benchmarks.workload import Workload
from madtp.shared.inference import CastLinear


def test_layers_are_switched_to_and_fro():
    model = Workload("clip", 1, "noise", "cpu", torch.bfloat16, small=True).model

    def replaced():
        return [value for module in model.modules() for value in vars(module).values() if isinstance(value, CastLinear)]

    all_of_them, layers = replaced(), bench_prepared.Layers(model)
    for prepared in (False, False, True, True, False):
        layers.switch(prepared)
        assert replaced() == (all_of_them if prepared else [])
    assert any(name == "in_proj" for _, name, _ in layers.made)


def test_it_prints_a_row_for_dense_and_pruned(monkeypatch, capsys):
    words = "bench_prepared --small --amp bf16 --p 0.15 --batch 2 --rounds 1".split()
    monkeypatch.setattr(sys, "argv", words)
    bench_prepared.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["dense", "pruned"]
    assert all(row["seconds"] > 0 and row["faster"] > 0 for row in rows)
