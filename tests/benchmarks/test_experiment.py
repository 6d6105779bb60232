"""The experiment's methods in the models, and its bookkeeping on a miniature."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.comparison import reporting
from benchmarks.comparison.methods import METHODS
from benchmarks.comparison.rules import Whole, by_tower
from benchmarks.experiment import __main__ as driver
from benchmarks.experiment import cells, plots, report, results, running
from madtp.cost.schedule import SHAPES
from madtp.cost.trace import Trace
from madtp.method.layout import RECTANGLE
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from tests.tiny import STATEMENTS, build, images

KNOB = 1e9  # at which every method drops as much as it can


def test_a_tower_can_be_left_alone_and_pays_for_nothing():
    model = build(blip_nlvr)
    model.keep = by_tower(lambda x: Whole(), lambda x: RECTANGLE)
    trace = Trace()
    with torch.no_grad():
        model(images(6), STATEMENTS, temperature=30.0, train=False, trace=trace)
    assert {row.left for row in trace.layers["image"]} == {17} and trace.layers["text"][-1].left < 10
    rows = running.charged(trace, ("text",)).layers
    assert [row.scored for row in rows["image"]] == [False] * 3 and all(row.scored for row in rows["text"])
    assert [row.left for row in rows["image"]] == [row.left for row in trace.layers["image"]]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The experiment in miniature: its folders, and what runs it."""
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "DATA", "--train 50 --val 50 --test 50 --pairs 54 --objects 2 --grid 7".split())
        sizes = "vit={embed_dim: 96, depth: 2, num_heads: 3, patch_size: 12}"
        patch.setattr(cells, "MODEL", (sizes, "batch_size_train=8"))
        patch.setattr(cells, "DENSE_TRAINING", dict.fromkeys(cells.TASKS, ("max_epoch=1", "epoch_steps=2")))
        for module in (cells, running):
            patch.setattr(module, "EPOCHS", 2)
        patch.setattr(cells, "STEPS", 2)
        patch.setattr(cells, "FINE_TUNING", ("init_lr=3e-4", "ramp=0"))
        patch.setattr(running, "BATCHES", (25,))
        patch.setattr(running, "ABLATED_AT", 0.2)
        paths = {name: folder / name for name in ("data", "output", "results")}
        flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
        paths["results"].mkdir()
        (paths["results"] / "speed_decoding.jsonl").write_text('{"task": "caption"}\n')  # results of something else

        def run(*arguments):
            return driver.main([*flags, "--seeds", "1", *arguments])

        assert run("--task", "caption", "--methods", "madtp", "static", "--p", "0.2", "0.9") == 0
        yield SimpleNamespace(run=run, **paths)


def lines(small):
    return [json.loads(line) for line in (small.results / "caption.jsonl").read_text().splitlines()]


def test_a_cell_is_scored_at_the_cost_asked_for_and_says_what_made_it(small):
    records = {record["name"]: record for record in lines(small)}
    assert list(records) == [
        f"caption-1-{name}" for name in ("dense", "madtp-0.2", "static-0.2", "madtp-0.9", "static-0.9")
    ]
    assert records["caption-1-dense"]["scores"]["32"]["percent"] == 100
    for method in ("madtp", "static"):
        found = records[f"caption-1-{method}-0.2"]
        for scores in (found["untuned"], *found["scores"].values()):
            assert scores["percent"] == pytest.approx(80, abs=6) and 0 <= scores["score"] <= 100
        assert found["command"].endswith(f"--methods {method} --p 0.2 --seeds 1") and found["cpu"] and found["date"]
    assert set(records["caption-1-madtp-0.2"]["losses"]) == {"loss_task", "loss_sim"}
    assert set(records["caption-1-static-0.2"]["losses"]) == {"loss_task"}
    assert "out of reach" in records["caption-1-madtp-0.9"]["out_of_reach"]
    assert str(small.data.parent) not in (small.results / "caption.jsonl").read_text()


def test_a_trained_madtp_is_measured_at_other_temperatures_and_with_one_tower_pruned(small):
    record = next(record for record in lines(small) if record["name"] == "caption-1-madtp-0.2")
    costs = {float(factor): scores["percent"] for factor, scores in record["factors"].items()}
    assert [costs[factor] for factor in sorted(costs)] == sorted(costs.values(), reverse=True)
    whole, pruned = (record["towers"][tower]["tokens"]["image"] for tower in ("text", "image"))
    assert min(whole) == 50 > min(pruned) and record["towers"]["image"]["percent"] < 85
    assert len(record["spreads"]) == 2 and min(record["spreads"]) > 0


def test_a_finished_cell_is_not_run_again_and_one_that_is_claimed_is_left(small, monkeypatch):
    before = lines(small)
    monkeypatch.setattr(driver, "compare", lambda cell, places: {"ran": cell.name})
    assert small.run("--task", "caption", "--methods", "madtp", "--p", "0.2") == 0 and lines(small) == before
    lock = small.output / "locks" / "caption-1-tome-0.2"
    with driver.claimed(lock) as ours:
        assert ours and small.run("--task", "caption", "--methods", "tome", "--p", "0.2") == 1
        assert lines(small) == before
    assert small.run("--task", "caption", "--methods", "tome", "--p", "0.2", "--minutes", "-1") == 1
    assert small.run("--task", "caption", "--methods", "tome", "--p", "0.2") == 0
    assert lines(small)[:-1] == before and lines(small)[-1]["ran"] == "caption-1-tome-0.2"
    (small.results / "caption.jsonl").write_text("".join(json.dumps(record) + "\n" for record in before))


def test_test_questions_have_answers_when_the_score_is_kept(small):
    run = running.prepared(cells.Cell("vqa", 1), cells.Places(small.data, small.output))
    assert next(iter(run.loaders["test"]))["answers"] is None
    loaders = [running.scored_loader(run, 8, split) for split in ("test", "val", "")]
    assert all(len(next(iter(loader))["answers"]) == 8 for loader in loaders)
    questions = [entry["question_id"] for entry in run.loaders["test"].dataset.dataset.entries]
    assert [entry["question_id"] for entry in loaders[0].dataset.dataset.entries] == questions


def test_schedules_are_searched_and_scored_untuned_on_validation(small):
    flags = ["--task", "caption", "--untuned", "--p", "0.2", "--methods", "coverage", "tome_shaped"]
    assert small.run(*flags) == 0
    found = [json.loads(line) for line in (small.results / "untuned.jsonl").read_text().splitlines()]
    dense, *others = found
    assert dense["untuned"]["percent"] == 100 and [record["method"] for record in others] == flags[-2:]
    for record in others:
        assert record["shape"] in SHAPES and record["untuned"]["percent"] == pytest.approx(80, abs=2)
        assert record["command"].endswith(f"--methods {record['method']} --p 0.2 --seeds 1 --untuned")
        assert record["untuned"]["percent_p10"] == pytest.approx(record["untuned"]["percent_p90"])
    assert small.run(*flags, "--seeds", "2") == 2, "nobody trained that one"
    assert small.run(*flags, "--final") == 0
    *_, last = map(json.loads, (small.results / "untuned_final.jsonl").read_text().splitlines())
    assert last["command"].endswith("--untuned --final") and last["shape"] == others[-1]["shape"]
    before = lines(small)
    assert small.run("--task", "caption", "--p", "0.2", "--methods", "coverage") == 0
    assert lines(small)[-1]["shape"] in SHAPES and lines(small)[-1]["scores"]["32"]["percent"] == pytest.approx(
        80, abs=2
    )
    (small.results / "caption.jsonl").write_text("".join(json.dumps(record) + "\n" for record in before))


def test_the_report_says_what_the_results_say(small, tmp_path, monkeypatch, capsys):
    words = tmp_path / "words.md"
    blocks = ["compared caption 0.2", "compared caption 0.9", "missing", "plot tokens caption"]
    words.write_text("\n".join(["{score caption madtp 0.2} of {score caption dense}", *(f"{{{b}}}" for b in blocks)]))
    monkeypatch.setattr(report, "WORDS", words)
    assert small.run("--report", str(tmp_path)) == 0
    text = (tmp_path / "results.md").read_text()
    records = {record["name"]: record for record in lines(small)}
    wanted = records["caption-1-madtp-0.2"]["scores"]["32"]
    assert text.startswith(f"{wanted['score']:.1f} of ") and f"| MADTP | {wanted['percent']:.1f} |" in text
    assert (
        "| MADTP | out of reach |" in text
        and "| random |" not in text
        and "| captions, 70 % | MADTP; MADTP, kept" in text
    )
    assert (tmp_path / "results" / "tokens_caption.png").stat().st_size > 1000
    words.write_text("{nonsense caption}")
    assert small.run("--report", str(tmp_path)) == 2 and "{nonsense caption} is none of" in capsys.readouterr().err


def test_the_legend_lies_within_the_picture(tmp_path, monkeypatch):
    """With every method and both towers, which is as wide as it gets."""
    tokens = {"scores": {str(cells.BATCH): {"tokens": {"image": [5.0, 4.0], "text": [3.0, 3.0]}}}}
    every = SimpleNamespace(of=lambda task, method, p: {1: tokens})
    drawn = []
    monkeypatch.setattr(plots.plt, "close", drawn.append)
    plots.tokens(every, tmp_path / "tokens.png", "nlvr")
    (figure,) = drawn
    (legend,) = figure.legends
    edges = legend.get_window_extent()
    assert figure.bbox.x0 <= edges.x0 and edges.x1 <= figure.bbox.x1
    assert len(legend.get_texts()) == 1 + len(plots.LOOKS)


def test_what_is_pruned_as_it_is_stands_beside_dense():
    def record(method, p, seed=1, **told):
        return {"task": "vqa", "method": method, "p": p, "seed": seed, **told}

    known = [
        record("dense", 0.0, untuned={"score": 90.0}),
        record("coverage", 0.5, untuned={"score": 89.5}, shape=0.25),
        record("madtp", 0.5, untuned={"score": 60.0}),
        record("madtp", 0.7, out_of_reach="T"),
    ]
    assert report.as_they_are(SimpleNamespace(as_they_are=known), "vqa:0.5", "vqa:0.7").splitlines() == [
        "|  | VQA, 50 % | VQA, 30 % |",
        "| --- | --- | --- |",
        "| dense | 90.0 | 90.0 |",
        "| coverage | 89.5 (*b* 0.25) | not run |",
        "| MADTP | 60.0 | out of reach |",
    ]
    known += [
        record("dense", 0.0, 2, untuned={"score": 80.0}),
        record("coverage", 0.5, 2, untuned={"score": 79.5}, shape=0.1),
        record("madtp", 0.5, 2, out_of_reach="T"),
    ]
    *_, coverage, madtp = report.in_the_end(SimpleNamespace(in_the_end=known), "vqa:0.5").splitlines()
    assert coverage == "| coverage | 84.5 ± 7.1 (*b* 0.1, 0.25) |"
    assert madtp == "| MADTP | 60.0 of 90.0 (1 of 2) |"


def test_the_template_asks_for_nothing_unknown():
    assert {place.split()[0] for place, _ in reporting.PLACE.findall(report.WORDS.read_text())} <= set(report.BLOCKS)


@pytest.fixture
def found(tmp_path):
    """Results of three seeds, some of which do not reach the cost, or miss it."""
    scores = {"madtp": [90, 80, 70], "static": [89, 78, 67], "token": [None, 50, None], "tome": [None] * 3}
    costs = {"static": 48}
    lines = []
    for method, values in scores.items():
        for seed, value in enumerate(values):
            at = {"score": value, "percent": costs.get(method, 50)}
            outcome = {"out_of_reach": "."} if value is None else {"scores": {"32": at}, "towers": {}}
            lines.append(
                {"name": f"{method}{seed}", "task": "nlvr", "method": method, "p": 0.5, "seed": seed, **outcome}
            )
            if method == "madtp":
                lines[-1] |= {"towers": {tower: {"score": value - 5, "percent": 60} for tower in ("image", "text")}}
    (tmp_path / "nlvr.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    return results.Results(tmp_path, tmp_path)


def test_the_spread_is_over_the_seeds_and_differences_are_taken_seed_by_seed(found):
    assert report.score(found, "nlvr", "madtp", "0.5") == "80.0 ± 10.0"
    assert report.gap(found, "nlvr", "static", "0.5") == "−2.0 ± 1.0"
    assert report.gap(found, "nlvr", "madtp", "0.5", "static") == "+2.0 ± 1.0"


def test_every_method_is_held_against_madtp_on_the_seeds_that_both_reach(found):
    head, _, *rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in report.overview(found, "0.5").split("\n")
    ]
    rows = {row[0]: row[1:] for row in rows}
    assert head == ["", "NLVR2, 50 %", "VQA, 50 %", "captions, 50 %"]
    assert rows["MADTP"] == ["80.0 ± 10.0", "not run", "not run"]
    assert rows["static, by class attention"] == ["−2.0 ± 1.0", "—", "—"]
    assert rows["ToMe as published"] == ["out of reach", "—", "—"] and "random" not in rows  # which was not run
    assert "| alignment score alone | −30.0 (1 of 3) |" in report.ablations(found, "nlvr")
    assert "| text | 75.0 ± 10.0 | 60.0 ± 0.0 |" in report.towers(found, "nlvr")


def test_costs_that_miss_are_listed(found):
    assert report.unequal(found).splitlines()[2:] == ["| NLVR2, 50 % | static, by class attention | 48.0, 48.0, 48.0 |"]


@pytest.mark.parametrize("task", cells.TASKS)
def test_every_cell_comes_once_and_after_the_one_it_starts_from(task):
    planned = driver.plan(task)
    assert len(set(planned)) == len(planned)
    places = {cell: place for place, cell in enumerate(planned)}
    assert all(places[cell.earlier] < places[cell] for cell in planned if cell.earlier)
    assert {cell.p for cell in planned if cell.method == "self"} == {0.5}
    asked = driver.plan(task, ["self"], [0.3], [2])
    longer, usual = (cells.Cell(task, 1, method, 0.5).training for method in ("madtp_long", "madtp"))
    assert f"epoch_steps={4 * cells.STEPS}" in longer and f"epoch_steps={cells.STEPS}" in usual
    assert asked[-1] == cells.Cell(task, 2, "self", 0.3) and all(cell.method == "dense" for cell in asked[:-1])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_infers_with_fewer_tokens(name):
    model = build(blip_nlvr)
    model.keep = METHODS[name].keep
    losses = model(images(6), STATEMENTS, torch.tensor([0, 1, 1]), temperature=KNOB)
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    trace = Trace()
    with torch.no_grad():
        logits = model(images(6), STATEMENTS, temperature=KNOB, train=False, trace=trace)
    left = {tower: np.mean(rows[-1].left) / np.mean(rows[0].entered) for tower, rows in trace.layers.items()}
    assert logits.shape == (3, 2) and logits.isfinite().all()
    whole = {
        "tome": "text",
        "tome_long": "text",
        "tome_even": "text",
        "tome_geometric": "text",
        "tome_front": "text",
        "tome_shaped": "text",
        "coverage": "text",
        "coverage_counts": "text",
        "coverage_lengths": "text",
        "static_image": "text",
        "image": "text",
        "sample_image": "text",
        "unguided_image": "text",
    }
    for tower, share in left.items():
        assert share == 1 if {**whole, "text": "image"}.get(name) == tower else share < 1


@pytest.mark.parametrize("name", sorted({cell.method for cell in driver.plan("caption")} - {"dense"}))
def test_a_captioner_prunes_its_images_alone(name):
    model = build(blip_decoder)
    model.keep = METHODS[name].keep
    trace = Trace()
    losses = model(images(3), [f"a picture of {statement}" for statement in STATEMENTS], KNOB, trace=trace)
    sum(losses.values()).backward()
    assert np.max(trace.layers["image"][-1].left) < 10
    assert all(np.array_equal(row.entered, row.left) for row in trace.layers["decoder"])
    with torch.no_grad():
        assert all(isinstance(text, str) for text in model.generate(images(3), temperature=KNOB))
