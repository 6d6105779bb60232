"""One request at a time: compiled layers take turns with the same layers as they are."""

from contextlib import contextmanager

import torch

from benchmarks import bench_single
from benchmarks.workload import Workload, image_layers


def test_every_other_turn_is_compiled(monkeypatch):
    calls = []

    @contextmanager
    def compiled(layers):
        for number, layer in enumerate(layers):
            layer._compiled_call_impl = lambda *inputs, own=layer, number=number: (
                calls.append(number),
                own._call_impl(*inputs),
            )[1]
        yield

    monkeypatch.setattr(bench_single, "compiled", compiled)
    monkeypatch.setattr(bench_single, "REPEATS", 1)
    workload = Workload("nlvr", 1, "noise", "cpu", torch.float32, own=bench_single.sizes(32, 2))
    rows = bench_single.measure_compiled(workload, [0.2], rounds=2)
    assert rows[0]["name"] == "dense" and len(rows) > 1 and all(row["compiled"] and row["speedup"] > 0 for row in rows)
    assert calls == [*range(len(image_layers(workload.model)))] * len(rows) * (1 + 1 + 2)  # first, warm-up, two rounds
