"""What coverage takes of the time: every part is timed where it is called, and everything is put back."""

from argparse import Namespace
from collections import Counter

import pytest
import torch

from benchmarks import bench_coverage
from madtp.method import compiled, coverage, merged

SMALL = Namespace(image_size=64, patch_size=16, width=24, batch=2, shape=1.0, device="cpu")


@pytest.mark.parametrize("few", [False, True])
def test_every_part_is_timed_in_every_layer_that_prunes(few, monkeypatch):
    if few and compiled.library() is None:
        pytest.skip("no C compiler")
    if not few:
        monkeypatch.setattr(compiled, "library", lambda: None)
    monkeypatch.setattr(bench_coverage, "DEPTH", 3)
    before = coverage.choose, merged.attend
    tower, calls = bench_coverage.Tower(SMALL, torch.float32), Counter()
    monkeypatch.setattr(bench_coverage, "timed", lambda work, device: (work(), 1.0))
    with bench_coverage.parts_timed(calls, "cpu"):
        tower.encode(1.5)
    # 9, 6 and 4 of 16 tokens are left: three layers prune, two attend with sizes, as long as without
    parts = {"together": 3} if few else {"similarities": 3, "choice": 3, "merging": 6}
    assert calls == {"scores": 3, "bias": 0, **parts}
    assert (coverage.choose, merged.attend) == before


def test_shares_are_of_the_dense_time(monkeypatch):
    monkeypatch.setattr(bench_coverage, "DEPTH", 2)
    tower = bench_coverage.Tower(SMALL, torch.float32)
    row = bench_coverage.measure(tower, 1.5, rounds=2, device="cpu")
    assert set(row["shares"]) == {"scores", "similarities", "choice", "merging", "together", "bias"}
    assert sum(row["shares"].values()) == row["sum"] and row["shares"]["scores"] > 0 and row["speedup"] > 0
    assert tower.share(0.0) == 1 and tower.share(1.5) < 0.9
