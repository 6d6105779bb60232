"""Pages of speed and of other people's models are what the report makes of the kept lines, and of others."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.library_tables import faster_at, photo_models
from benchmarks.lines import Lines
from benchmarks.report import WORDS, gpu, main, models

ROOT = Path(__file__).parents[2]


def test_the_pages_are_what_the_report_makes_of_the_lines(tmp_path):
    main(["--results", str(ROOT / "benchmarks/results"), "--docs", str(tmp_path)])
    for page in WORDS:
        assert (tmp_path / page).read_text() == (ROOT / "docs" / page).read_text()


@pytest.fixture
def lines(tmp_path):
    """Keeps lines of its own beside a copy of those that there are."""
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "benchmarks/results", folder)

    def add(file, *rows):
        with (folder / f"{file}.jsonl").open("a") as opened:
            opened.writelines(json.dumps(row) + "\n" for row in rows)
        return Lines(folder)

    return add


def test_a_share_of_the_bound_is_shown_where_there_is_one(lines):
    row = {"task": "nlvr", "amp": "bf16", "plain": "amax", "name": "coverage", "batch": 1, "percent": 50.04}
    row |= {"samples_per_second": 3.21, "speedup": 1.5, "efficiency": 0.75, "peak_mib": 99.6}
    bounded = row | {"percent_of_bound": 61.7}
    *_, before, added = models(lines("speed_inference", row, bounded), "inference").splitlines()
    assert added == "| bf16, batch 1, coverage | 50.0 | 3.21 | 1.50 | 0.75 | 62 | 100 |"
    assert before == "| bf16, batch 1, coverage | 50.0 | 3.21 | 1.50 | 0.75 | not measured | 100 |"


def test_lines_without_a_gpu_are_none_of_a_gpu(lines):
    machine = {"section": "kernels", "part": "machine", "device": "cpu", "hardware": "a processor"}
    assert gpu(lines("gpu")) == gpu(lines("gpu", machine, {"section": "kernels", "part": "forward", "agrees": True}))
    assert "No GPU has run it yet" in gpu(lines("gpu"))


def test_lines_of_a_gpu_are_shown_with_what_went_wrong(lines):
    machine = {"section": "speed", "part": "machine", "device": "cuda", "hardware": "an accelerator"}
    row = {"section": "speed", "part": "a", "task": "clip", "batch": 64, "train": False, "compiled": True, "p": 0.5}
    row |= {"name": "pruned", "percent": 50.0, "samples_per_second": 1234.5, "speedup": 1.75, "peak_mib": 2000.4}
    wrong = [{"section": "speed", "part": "b", "failed": "no"}, {"section": "speed", "part": "c", "skipped": "needs x"}]
    wrong.append({"section": "speed", "part": "d", "agrees": False})
    page = gpu(lines("gpu", machine, row, *wrong))
    assert page.startswith("an accelerator:") and "| speed | 2 | b | c | d |" in page
    assert "| clip inference, 64 | pruned, compiled | 0.5 | 50.0 | 1234 | 1.75 | 2000 |" in page


def test_what_was_measured_last_is_shown(lines):
    row = {"rule": "ToMe", "p": 0.5, "batch": 32}
    measured = lines("library", {**row, "faster": 1.234})
    assert faster_at(measured, "ToMe", 0.5, 32) == "1.23 x" and faster_at(measured, "ToMe", 0.5, 64) == "—"


def test_photo_models_stand_beside_tome_at_its_best():
    """Its best at half the cost of retrieval is the geometric schedule, better than the one that was searched."""
    (row,) = (
        row for row in photo_models(Lines(ROOT / "benchmarks/results")).splitlines() if "retrieval, r mean | 50" in row
    )
    cells = row.strip("| ").split(" | ")
    assert cells[4].endswith("geometric") and float(cells[2]) > float(cells[3].split()[0]) > float(cells[4].split()[0])
    gap = float(cells[3].split()[0]) - float(cells[4].split()[0])
    assert float(cells[5].split()[0]) == pytest.approx(gap, abs=0.11)
