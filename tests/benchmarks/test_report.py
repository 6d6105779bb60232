"""Pages of speed and of other people's models are what the report makes of the kept lines, and of others."""

import json
import re
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmarks.experiment import report as experiment
from benchmarks.library_tables import faster_at, photo_models
from benchmarks.lines import Lines
from benchmarks.photos import report as photos
from benchmarks.report import WORDS, compiled, gpu, main, memory, models, own_parts, speedups, summary

ROOT = Path(__file__).parents[2]


def test_the_pages_are_what_the_report_makes_of_the_lines(tmp_path):
    main(["--results", str(ROOT / "benchmarks/results"), "--docs", str(tmp_path / "docs")])
    for page in WORDS:
        assert (tmp_path / "docs" / page).read_text() == (ROOT / "docs" / page).read_text()


@pytest.mark.parametrize("report, page", [(photos, "photos.md"), (experiment, "results.md")])
def test_the_pages_of_experiments_are_what_their_reports_make(report, page, tmp_path, monkeypatch):
    """But for the plots, which differ from one version of matplotlib to the next."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    report.write_report(ROOT / "benchmarks/results", tmp_path)
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


def test_the_front_page_shows_the_table_of_photos_as_it_is():
    page, front = ((ROOT / name).read_text() for name in ("docs/photos.md", "README.md"))
    tables = re.findall(r"(?:^\|.*\n)+", page[page.index("## The test split") :], re.MULTILINE)
    assert tables[0] in front


def test_a_share_of_the_bound_is_shown_where_there_is_one(lines):
    row = {"task": "nlvr", "amp": "bf16", "plain": "amax", "name": "coverage", "batch": 1, "percent": 50.04}
    row |= {"samples_per_second": 3.21, "speedup": 1.5, "efficiency": 0.75, "peak_mib": 99.6}
    bounded = row | {"percent_of_bound": 61.7}
    *_, before, added = models(lines("speed_inference", row, bounded), "inference", "nlvr").splitlines()
    assert added == "| bf16, batch 1, coverage | 50.0 | 3.21 | 1.50 | 0.75 | 62 | 100 |"
    assert before == "| bf16, batch 1, coverage | 50.0 | 3.21 | 1.50 | 0.75 | not measured | 100 |"


def test_parts_of_coverage_that_took_nothing_anywhere_are_no_column(tmp_path):
    row = {"batch": 8, "amp": "off", "p": 0.5, "speedup": 1.9, "sum": 3.1}
    row |= {"shares": {"scores": 1.0, "choice": 2.1, "together": 0}}
    (tmp_path / "speed_coverage.jsonl").write_text(json.dumps(row) + "\n")
    head, _, line = own_parts(Lines(tmp_path)).splitlines()
    assert (
        head == "|  | speed-up | scores | choice | sum |"
        and line == "| float32, batch 8, p 0.5 | 1.90 | 1.0 | 2.1 | 3.1 |"
    )


def test_memory_is_a_share_of_the_other_sides_by_precision(tmp_path):
    row = {"task": "nlvr", "plain": "amax", "batch": 4}
    peaks = {("off", "pruned"): 60, ("off", "plain"): 80, ("bf16", "pruned"): 45, ("bf16", "plain"): 50}
    rows = [row | {"amp": amp, "name": name, "peak_mib": peak} for (amp, name), peak in peaks.items()]
    (tmp_path / "speed_training.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert memory(Lines(tmp_path), "training", "pruned", "plain") == "0.75 (float32) and 0.90 (bf16)"
    alone = [row | {"amp": "off", "name": "pruned", "peak_mib": peak} for peak in (1, 44)]
    (tmp_path / "speed_memory.jsonl").write_text("".join(json.dumps(one) + "\n" for one in alone))
    assert memory(Lines(tmp_path), "training", "pruned", "plain").startswith("0.55"), "what was found last"


def test_the_summary_has_every_rule_at_half_the_cost_beside_its_own_dense_model(tmp_path):
    dense = {"task": "nlvr", "plain": "amax", "amp": "bf16", "batch": 4, "p": 0.0, "name": "dense", "peak_mib": 200.0}
    pruned = dense | {"p": 0.5, "percent": 49.96, "peak_mib": 150.4}
    rows = [dense, dense | {"plain": "max", "peak_mib": 900.0}]
    rows += [pruned | {"name": "pruned", "speedup": 1.86}, pruned | {"name": "plain", "speedup": 1.2}]
    rows += [pruned | {"name": "coverage", "speedup": 2.14}, pruned | {"name": "coverage", "p": 0.7, "speedup": 3.0}]
    (tmp_path / "speed_inference.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    single = {"width": 96, "patches": 49, "p": 0.5, "rule": "sample", "percent": 50.0, "speedup": 0.99}
    (tmp_path / "speed_single.jsonl").write_text(json.dumps(single) + "\n" + json.dumps(single | {"width": 192}))
    assert summary(Lines(tmp_path)).splitlines()[2:] == [
        "| NLVR2, inference, bf16, batch 4 | MADTP | 50.0 | 1.86 x | 150 of 200 |",
        "| NLVR2, inference, bf16, batch 4 | coverage | 50.0 | 2.14 x | 150 of 200 |",
        "| the demo's size, float32, batch 1 | MADTP, `sample` | 50.0 | 0.99 x | — |",
    ]
    assert speedups(Lines(tmp_path), "inference") == "1.9 to 2.1"


def test_compiled_layers_are_held_against_the_same_as_they_are(lines):
    row = {"width": 96, "patches": 49, "name": "pruned", "rule": "batch", "p": 0.5, "milliseconds": 9.876}
    *_, added = compiled(lines("speed_compiled", row | {"speedup": 0.876, "seconds_to_compile": 12.3})).splitlines()
    assert added == "| 96 wide, 49 patches | batch, p 0.5 | 9.88 | 0.88 | 12 |"


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
    assert "| clip inference, 64 | MADTP, compiled | 0.5 | 50.0 | 1234 | 1.75 | 2000 |" in page


def test_what_was_measured_last_is_shown(lines):
    row = {"rule": "ToMe", "p": 0.5, "batch": 32}
    measured = lines("library", {**row, "faster": 1.234})
    assert faster_at(measured, "ToMe", 0.5, 32) == "1.23 x" and faster_at(measured, "ToMe", 0.5, 64) == "—"


def test_photo_models_stand_beside_tome_at_its_best():
    """Its best at half the cost of retrieval is the geometric schedule, better than the one that was searched."""
    (row,) = (
        row
        for row in photo_models(Lines(ROOT / "benchmarks/results")).splitlines()
        if "retrieval, mean recall | 50" in row
    )
    cells = row.strip("| ").split(" | ")
    assert cells[4].endswith("geometric") and float(cells[2]) > float(cells[3].split()[0]) > float(cells[4].split()[0])
    gap = float(cells[3].split()[0]) - float(cells[4].split()[0])
    assert float(cells[5].split()[0]) == pytest.approx(gap, abs=0.11)
