"""What the benchmark of the models times is what the tasks' own files say, and its bound counts what is multiplied."""

import json
import sys
from copy import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_model
from benchmarks.bound import Bound
from benchmarks.workload import CLIP, TASKS, Workload, sizes
from madtp.method import compiled
from madtp.run import config as configuration
from madtp.shared.inference import prepare

OF_A_RUN = ("pretrained", "image_root", "max_epoch", "init_lr", "batch_size_train", "batch_size_test", "weight_decay")


@pytest.mark.parametrize("name", TASKS)
def test_the_sizes_are_those_of_the_tasks_files(name):
    expected = configuration.resolve(TASKS[name].default_config, TASKS[name].name)
    found = sizes(name, small=False) | {key: expected[key] for key in OF_A_RUN}
    if name == "clip":  # the file leaves them to the checkpoint
        assert found["clip"] == CLIP
        found["clip"] = None
    assert {**found, "med_config": expected["med_config"]} == expected


@pytest.fixture(scope="module")
def small():
    workload = Workload("nlvr", 2, "noise", "cpu", torch.float32, small=True)
    workload.prepare_training()
    return workload


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["dense", "pruned", "coverage"])
def test_the_bound_counts_what_pytorch_counts(small, name, train, monkeypatch):
    monkeypatch.setattr(Workload, "forward", torch.no_grad()(Workload.forward.__wrapped__))  # for PyTorch's counter
    monkeypatch.setattr(compiled, "library", lambda: None)  # which hears nothing of C
    small.model.eval()
    side = small.side(name, 0.0 if name == "dense" else 0.5, train)
    with FlopCounterMode(display=False) as counter:
        side()
    counts = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    batched = counts.pop("aten.bmm", 0)  # PyTorch's counter does not know a CPU's fused attention
    bound = Bound(side, "cpu")
    assert bound.flops() == pytest.approx(sum(counts.values()))
    assert bound.attention >= batched and bound.attention > 0


def test_the_bound_counts_two_products_of_fused_attention_and_five_behind_them():
    query, key, value = (torch.randn(2, 3, 7, 4, requires_grad=True) for _ in range(3))
    one = 2 * 2 * 3 * 7 * 7 * 4

    def work():
        F.scaled_dot_product_attention(query, key, value).sum().backward()

    with torch.no_grad():
        assert Bound(lambda: F.scaled_dot_product_attention(query, key, value), "cpu").attention == 2 * one
    assert Bound(work, "cpu").attention == 7 * one


def test_the_bound_counts_packed_products_as_plain_ones():
    layer, x = nn.Sequential(nn.Linear(12, 20)), torch.randn(2, 3, 12)
    plain = Bound(lambda: layer(x), "cpu")
    prepare(layer, torch.bfloat16)
    packed = Bound(lambda: layer(x), "cpu")
    packed()
    assert packed.flops() == plain.flops() == 2 * 6 * 12 * 20 and packed.best_rate() > 0


def test_its_products_are_made_as_often_as_they_were_heard(small, monkeypatch):
    bound, made = Bound(small.side("dense", 0.0), "cpu"), []
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda left, right: made.append(1) or multiply(left, right))
    bound()
    assert len(made) == sum(times for *_, times in bound.products) > len(bound.products)
    other = copy(bound)
    other.attention *= 3
    monkeypatch.setattr(Bound, "best_rate", lambda self: 1e9)
    assert other.seconds([1.0])[0] - 1 == pytest.approx(3 * (bound.seconds([1.0])[0] - 1))


def printed(monkeypatch, capsys, *words) -> list[dict]:
    """The rows of a small model."""
    small = "bench_model --task nlvr --small --p 0.15 --keep batch coverage --batch 2 --rounds 1 --threads 1".split()
    monkeypatch.setattr(sys, "argv", [*small, *words])
    bench_model.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("train", [[], ["--train"]])
def test_it_prints_the_share_of_the_bound_for_both_rules(train, monkeypatch, capsys):
    rows = printed(monkeypatch, capsys, *train)
    assert [row["name"] for row in rows] == ["dense", "pruned", "plain", "coverage"]
    assert all(row["percent_of_bound"] > 0 and row["samples_per_second"] > 0 for row in rows)


def test_memory_alone_is_the_same_without_a_clock(monkeypatch, capsys):
    timed, alone = (printed(monkeypatch, capsys, "--train", *flag) for flag in ([], ["--memory"]))
    assert [row["peak_mib"] for row in alone] == pytest.approx([row["peak_mib"] for row in timed], rel=0.01)
    assert not any("speedup" in row for row in alone)
