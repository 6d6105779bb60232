"""The photos' benchmark in miniature: a few generated pictures and tiny random towers through the whole chain."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.comparison.schedules import SHAPES
from benchmarks.photos import (
    cells,
    dense,
    guides,
    losses,
    pictures,
    reranking,
    running,
    training,
    tuning,
)
from benchmarks.photos.machine import Machine
from benchmarks.photos.results import SCORE, best_schedule
from benchmarks.photos.subject import SUBJECTS
from benchmarks.photos.world import TASKS, read_split
from madtp.cost.trace import Trace
from madtp.method.layout import Sequences
from tests.benchmarks.album import SPLITS, WORDS, lines, miniature, tune
from tests.shared.weights.theirs import needs_5


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with miniature(tmp_path_factory.mktemp("photos")) as world:
        yield world


@needs_5
def test_every_photo_is_in_the_split_that_its_file_or_its_name_says(small):
    for task in ("retrieval", "caption"):
        named = [[photo.name for photo in read_split(small.places, task, split)] for split in SPLITS]
        assert named == [[f"a{n}.jpg" for n in some] for some in (range(8), range(8, 14), range(14, 18))]
    asked = {split: read_split(small.places, "vqa", split) for split in SPLITS}
    assert {split: len(photos) for split, photos in asked.items()} == SPLITS
    assert all(len(photo.texts) == len(photo.answers) for photos in asked.values() for photo in photos)
    assert "image" not in asked["val"][0].texts[0]
    assert set(json.loads((small.data / "annotation" / "answer_list.json").read_text())) <= set(WORDS)


@needs_5
def test_a_dense_model_learns_its_text_side_alone_and_leaves_a_curve(small):
    start = torch.load(small.towers / "towers.pth", weights_only=True)["model"]
    for task, blind in (("retrieval", False), ("caption", False), ("vqa", False), ("vqa", True)):
        model = torch.load(small.places.dense(task, blind), weights_only=True)["model"]
        tower = {name: value for name, value in model.items() if name.startswith("visual_encoder.")}
        assert tower and all(torch.equal(value, start[name]) for name, value in tower.items() if "pos" not in name)
        assert task != "vqa" or model["text_decoder.cls.predictions.bias"].abs().max() < 1, "no answer is silenced"
        side = "text_decoder.bert." if task == "caption" else "text_encoder."
        name = f"{side}encoder.layer.0.attention.self.query.weight"
        assert not torch.equal(model[name], start[name.replace(side, "text_encoder.")])
    curve = [json.loads(line) for line in (small.results / "photos_dense.jsonl").read_text().splitlines()]
    assert [(one["task"], one["blind"], one["epoch"]) for one in curve][-1] == ("vqa", True, 1)
    assert all(np.isfinite(one["loss"]) for one in curve)


@needs_5
def test_a_captioner_looks_again_at_what_features_find(small, capsys):
    rule = ["--rules", "coverage", "--schedules", "even", "--p", "0.1"]
    assert small.run("--task", "reranking", *rule) == small.run("--task", "retrieval", *rule) == 0
    half = ["--rules", "dense", "--amp", "bf16", "--results", str(small.results / "half")]
    assert small.run("--task", "reranking", *half) == 0
    ours, theirs = (
        lines(small, f"photos_{task}")[f"{task}-val-coverage-even-0.1"] for task in ("reranking", "retrieval")
    )
    assert ours["tokens"] == theirs["tokens"] and ours["percent"] == theirs["percent"]
    assert small.run("--task", "reranking", "--finetuned") == 2 and "--finetuned" in capsys.readouterr().err


@needs_5
@torch.no_grad()
def test_a_statement_is_judged_by_how_likely_its_photo_makes_it(small):
    photos = read_split(small.places, "statements", "val")
    judging = SUBJECTS["statements"](small.places, photos, Machine())
    states = judging.encode(next(judging.images(photos)), 0.0)
    for number, (found, photo) in enumerate(zip(judging.read(states, photos), photos, strict=True)):
        wanted = [reranking.likelihood(judging.model, [text], states.take([number])) for text in photo.texts]
        assert torch.allclose(found, torch.cat(wanted), atol=1e-4)


@needs_5
@torch.no_grad()
def test_a_caption_is_as_likely_as_its_words_one_after_the_other(small):
    model = dense.build(small.places, "caption", small.places.dense("caption"), evaluate=True).eval()
    states = Sequences.of(torch.randn(1, model.visual_encoder.shape.length, model.visual_encoder.embed_dim))
    captions = ["a dog", "two dogs in the snow"]
    found = reranking.likelihood(model, captions, states)
    for caption, value in zip(captions, found, strict=True):
        text = model.tokenize([caption], "[DEC]", max_length=40)
        ids, wanted = text.input_ids[0].tolist(), []
        for place in range(1, len(ids)):
            start = torch.tensor([ids[:place]])
            logits, _ = model.text_decoder(start, torch.ones_like(start), states=states)
            wanted.append(float(logits[0, -1].log_softmax(dim=-1)[ids[place]]))
        assert float(value) == pytest.approx(np.mean(wanted), abs=1e-4)


@needs_5
@pytest.mark.parametrize("task", TASKS)
def test_a_cell_costs_what_was_asked_for_and_holds_numbers_alone(small, task):
    arguments = ["--task", task, "--p", "0.1", "--rules", "tome", "important", "coverage"]
    arguments += ["--schedules", "even", "searched"]
    assert small.run(*arguments) == 0
    found = lines(small, f"photos_{task}")
    dense = found[f"{task}-val-dense"]
    assert dense["percent"] == 100 and dense["tokens"] == [26] * 3 and len(dense["photos"]) == 6
    for name in ("tome-even", "important-searched", "coverage-even"):
        cell = found[f"{task}-val-{name}-0.1"]
        assert cell["percent"] == pytest.approx(90, abs=3) and cell["image_percent"] < 100
        assert cell["rates"].keys() == {"1", "32"} and np.isfinite(cell["photos"]).all()
    searched = found[f"{task}-val-tome-searched-0.1"]
    assert searched["moved"][searched["shape"]] == min(searched["moved"].values())
    written = (small.results / f"photos_{task}.jsonl").read_text()
    assert "jpg" not in written and "left of" not in written and str(small.data) not in written
    before = written.count("\n")
    assert small.run(*arguments) == 0 and (small.results / f"photos_{task}.jsonl").read_text().count("\n") == before


@needs_5
def test_a_schedule_can_have_the_shape_of_madtps_own_counts(small):
    assert small.run("--task", "retrieval", "--p", "0.1", "--rules", "image", "tome", "--schedules", "madtp") == 0
    found = lines(small, "photos_retrieval")
    ours, theirs = found["retrieval-val-tome-madtp-0.1"], found["retrieval-val-image-0.1"]
    shares = [(np.array(one["tokens"]) - 1) / 25 for one in (theirs, ours)]
    exponent = np.log(shares[1]).sum() / np.log(shares[0]).sum()  # theirs pays for an alignment, and keeps fewer
    assert np.allclose(25 * shares[1], 25 * shares[0] ** exponent, atol=1) and ours["amount"] < 1


@needs_5
@pytest.mark.parametrize("task", ["retrieval", "caption", "vqa"])
def test_models_are_fine_tuned_under_every_rule_at_the_cost_asked_for(small, task):
    assert tune(small, task) == 0
    found = lines(small, f"photos_{task}_tuned")
    assert [one["rule"] for one in found.values()] == ["dense", "coverage", "tome", "image"]
    for cell in found.values():
        assert cell["seed"] == 1 and [one["step"] for one in cell["curve"]] == [0, 2, 3]
        assert all(np.isfinite(one["loss"]) for one in cell["curve"][1:]) and len(cell["photos"]) == 6
        assert cell["percent"] == pytest.approx(90 if cell["p"] else 100, abs=3)
        assert cell["curve"][-1]["score"] == pytest.approx(cell["scores"][SCORE[task]]), "of the same few photos"


@needs_5
def test_statements_are_judged_by_the_captioner_that_was_fine_tuned_for_captions(small, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "RECIPES", {"caption": replace(tuning.RECIPES["caption"], rate=0.1)})
    assert tune(small, "caption", "--rules", "tome", steps=1) == 0
    assert tune(small, "statements", "--rules", "tome", steps=1) == 0
    name = "statements-val-tome-even-0.1-tuned-1-1"
    assert small.run("--task", "statements", "--rules", "tome", "--schedules", "even", "--p", "0.1") == 0
    ours, untuned = (
        lines(small, "photos_statements_tuned")[name],
        lines(small, "photos_statements")[name.removesuffix("-tuned-1-1")],
    )
    assert ours["curve"] == lines(small, "photos_caption_tuned")[name.replace("statements", "caption")]["curve"]
    assert ours["photos"] != untuned["photos"] and ours["percent"] == pytest.approx(untuned["percent"])
    assert tune(small, "statements", "--rules", "coverage", steps=4) == 2
    assert "--task caption --rules dense --finetuned --steps 4 --seeds 1` trains it" in capsys.readouterr().err


@needs_5
def test_fine_tuning_moves_the_image_tower_and_leaves_the_texts_of_retrieval_alone(small):
    assert tune(small, "retrieval") == 0
    dense = torch.load(small.places.dense("retrieval"), weights_only=True)["model"]
    names = ("dense", "coverage-even-0.1", "image-0.1")
    files = [small.output / "tuned" / f"retrieval-{name}-tuned-3-1.pth" for name in names]
    tuned = [torch.load(file, weights_only=True)["model"] for file in files]
    weight = "visual_encoder.blocks.0.mlp.fc1.weight"
    assert not any(torch.equal(weights[weight], dense[weight]) for weights in tuned)
    texts = {name for weights in tuned for name in weights if name.startswith("text")}
    assert all("query_model" in name for name in texts)  # which align captions, and change no feature
    whole, coverage, madtp = (weights["space_dict"] for weights in tuned)
    assert torch.equal(whole, coverage) and not torch.equal(whole, madtp)


@needs_5
def test_fine_tuning_that_was_stopped_ends_as_if_it_had_not_been(small, monkeypatch):
    assert tune(small, "caption", "--rules", "dense", steps=5) == 0
    (whole,) = [one for one in lines(small, "photos_caption_tuned").values() if one["steps"] == 5]
    file = small.output / "tuned" / "caption-dense-tuned-5-1.pth"
    ended = torch.load(file, weights_only=True)["model"]
    file.unlink()
    (small.results / "photos_caption_tuned.jsonl").unlink()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tuning, "take_step", lambda *given: stop() if given[3] == 3 else training.take_step(*given))
        tune(small, "caption", "--rules", "dense", steps=5)
    assert torch.load(file, weights_only=True)["curve"][-1]["step"] == 2
    assert tune(small, "caption", "--rules", "dense", steps=5) == 0
    (resumed,) = lines(small, "photos_caption_tuned").values()
    assert [one["score"] for one in resumed["curve"]] == [one["score"] for one in whole["curve"]]
    again = torch.load(file, weights_only=True)["model"]
    assert all(torch.equal(value, again[name]) for name, value in ended.items() if name != "space_dict")  # drawn anew


@needs_5
def test_the_test_split_is_scored_by_what_was_trained_to_the_end_alone(small, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.photos.world.LOOKED_AT", {"flickr8k": 1, "daquar": 0})
    assert tune(small, "retrieval", "--rules", "tome") == 0
    monkeypatch.setattr(tuning, "take_step", None)  # nothing is trained any more
    assert tune(small, "retrieval", "--rules", "tome", "--final") == 0
    found = lines(small, "photos_retrieval_tuned_final")
    assert [one["count"] for one in found.values()] == [3, 3]
    weights = lines(small, "photos_retrieval_tuned")["retrieval-val-tome-even-0.1-tuned-3-1"]
    assert found["retrieval-test-tome-even-0.1-tuned-3-1"]["curve"] == weights["curve"]
    assert tune(small, "retrieval", "--rules", "tome", "--final", steps=6) == 2
    assert "--finetuned --steps 6 --seeds 1` trains it" in capsys.readouterr().err


@needs_5
def test_a_gate_teaches_the_choice_of_coverage_alone_and_changes_no_number_before(small):
    both = ["--rules", "tome", "coverage", "--lessons", "task", "gated"]
    assert tune(small, "caption", *both, "--p", "0.2", steps=2) == 0
    found = {name: one for name, one in lines(small, "photos_caption_tuned").items() if "-0.2-" in name}
    ours, theirs = (f"caption-val-{rule}-even-0.2-tuned-2-1" for rule in ("coverage", "tome"))
    assert sorted(found) == [ours, f"{ours}-gated", theirs]
    with_gate, without = found[f"{ours}-gated"], found[ours]
    assert with_gate["curve"][0] == without["curve"][0]
    assert with_gate["curve"][1]["loss"] != without["curve"][1]["loss"]


@needs_5
def test_variants_of_coverage_run_and_guides_are_taught_once_by_the_captioner_of_the_tower(small, monkeypatch):
    rule = ["--rules", *cells.VARIANTS, "tome_lengths", "coverage", "--schedules", "searched", "--p", "0.1"]
    assert small.run("--task", "caption", *rule) == 0
    guide = torch.load(small.output / "guides.pth", weights_only=True)["guides"]
    assert guide.shape == (3, 48) and guide.any(dim=1).all()
    monkeypatch.setattr(guides, "taught", None)
    assert small.run("--task", "retrieval", *rule) == 0
    for task in ("caption", "retrieval"):
        found = lines(small, f"photos_{task}")
        names = (cells.BY_TEXT, cells.LENGTHENED, cells.COVERAGE)
        guided, lengthened, plain = (found[f"{task}-val-{name}-searched-0.1"] for name in names)
        assert guided["percent"] == pytest.approx(90, abs=3) and len(guided["photos"]) == 6
        assert guided["tokens"] != plain["tokens"] or guided["percent"] > plain["percent"], "foretelling costs a little"
        assert lengthened["moved"].keys() == plain["moved"].keys() and lengthened["moved"] != plain["moved"]


@needs_5
def test_a_lesson_is_what_a_dense_model_trained_as_long_makes_of_the_photos(small, capsys, monkeypatch):
    lesson = ["--rules", "tome", "--lessons", "distilled"]
    assert tune(small, "caption", *lesson, steps=2) == 0
    monkeypatch.setattr(losses, "DISTILLATION", 0.0)
    assert tune(small, "caption", "--rules", "tome", steps=2) == 0
    found = lines(small, "photos_caption_tuned")
    with_lesson, without = (found[f"caption-val-tome-even-0.1-tuned-2-1{end}"] for end in ("-distilled", ""))
    assert with_lesson["lesson"] == "distilled" and with_lesson["curve"][-1]["loss"] > without["curve"][-1]["loss"]
    (small.output / "tuned" / "caption-dense-tuned-2-1.pth").unlink()
    assert tune(small, "caption", *lesson, "--p", "0.2", steps=2) == 2
    assert "--finetuned --steps 2 --seeds 1` trains it" in capsys.readouterr().err


@needs_5
def test_compression_may_begin_where_the_dense_model_was_trained(small, capsys):
    assert tune(small, "caption", "--rules", "tome", steps=4) == 0
    assert tune(small, "caption", "--rules", "tome", "--start", "trained", steps=4) == 0
    found = lines(small, "photos_caption_tuned")
    first, then = (found[f"caption-val-tome-even-0.1-tuned-4-1{end}"] for end in ("", "-trained"))
    assert then["start"] == "trained" and then["command"].endswith("--start trained")
    assert then["curve"][-1]["loss"] < first["curve"][-1]["loss"]
    (small.output / "tuned" / "caption-dense-tuned-4-1.pth").unlink()
    assert tune(small, "caption", "--rules", "tome", "--start", "trained", "--p", "0.2", steps=4) == 2
    assert "--finetuned --steps 4 --seeds 1` trains it" in capsys.readouterr().err


@needs_5
def test_learnable_tokens_are_trained_alone(small):
    assert small.run("--task", "retrieval", "--rules", "taught_image", "taught_sample_image", "--p", "0.1") == 0
    found = lines(small, "photos_retrieval")
    for rule in ("taught_image", "taught_sample_image"):
        assert found[f"retrieval-val-{rule}-0.1"]["curve"][-1]["step"] == 3
        weights = torch.load(small.output / "tuned" / f"retrieval-{rule}-0.1.pth", weights_only=True)["model"]
        assert "space_dict" in weights and all("space_dict" in name or "query_model" in name for name in weights)


@needs_5
def test_what_is_fine_tuned_takes_the_schedule_that_is_best_untuned(small, capsys):
    assert small.run("--task", "vqa", "--finetuned", "--p", "0.2") == 2
    assert "--schedules" in capsys.readouterr().err
    line = {"task": "vqa", "rule": "tome", "p": 0.2}
    names = {"even": 10.0, "front": 30.0, "geometric": 20.0}
    known = {
        f"vqa-val-tome-{schedule}-0.2": {**line, "schedule": schedule, "scores": {"accuracy": value}}
        for schedule, value in names.items()
    }
    assert best_schedule(known, "vqa", "tome", 0.2) == "front"


@needs_5
def test_what_every_rule_keeps_is_drawn_for_whoever_has_the_photos(small, tmp_path, capsys):
    asked = ["--task", "caption", "--rules", "image", "taught_image", "tome", "coverage"]
    asked += ["--schedules", "even", "--p", "0.2"]
    assert small.run(*asked, "--pictures", str(tmp_path), "--photos", "2") == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["caption-val-1.png", "caption-val-2.png"]
    assert small.run(*asked, "--pictures", str(pictures.DOCS / "photos")) == 2
    assert "no photo may go" in capsys.readouterr().err


@needs_5
def test_groups_that_are_drawn_are_those_that_were_merged(small):
    bench = running.Bench(small.places, "caption", "val", Machine())
    images = next(bench.subject.images(bench.subject.photos))
    for rule in ("tome", "random", "coverage"):
        cell = cells.Cell("caption", "val", rule, "even", 0.2)
        with bench.on_trial(cell, SHAPES["even"]):
            amount, trace = bench.amount(0.2, True), Trace()
            states = bench.subject.encode(images, amount, trace)
        sizes = getattr(states.layout, "sizes_of_tokens", None)
        sizes = states.layout.size if sizes is None else sizes
        for photo, steps in enumerate(pictures.steps_of(bench, cell, {cell.name: {"amount": amount}}, images)):
            assert sorted(sum(steps[-1].left, ())) == list(range(25))
            if rule != "random":
                assert [len(group) for group in steps[-1].left] == sizes[photo, 1:].tolist()


@needs_5
def test_the_final_scores_have_a_file_of_their_own(small, monkeypatch):
    monkeypatch.setitem(running.__dict__, "STEERING", 2)
    monkeypatch.setattr("benchmarks.photos.world.LOOKED_AT", {"flickr8k": 3, "daquar": 0})
    assert small.run("--task", "caption", "--rules", "dense", "--final") == 0
    assert lines(small, "photos_caption_final")["caption-test-dense"]["count"] == 1
    assert not any("test" in name for name in lines(small, "photos_caption"))


@needs_5
def test_a_blind_twin_answers_alike_whatever_the_photo(small):
    assert small.run("--task", "vqa", "--blind") == 0
    assert lines(small, "photos_vqa")["vqa-val-blind"]["scores"].keys() == {"accuracy"}
    photos = read_split(small.places, "vqa", "val")
    blind = SUBJECTS["vqa"](small.places, photos, Machine(), True)
    first, *others = (blind.outputs(blind.encode(image, 0.0), photos[:1]) for image in blind.images(photos, 1))
    assert all(torch.equal(first, other) for other in others)


@needs_5
def test_the_report_says_what_the_results_say(small, tmp_path):
    assert small.run("--task", "vqa", "--p", "0.1", "--rules", "image", "tome", "--schedules", "even") == 0
    assert tune(small, "vqa", "--rules", "tome") == 0
    assert small.run("--report", str(tmp_path)) == 0
    text = (tmp_path / "photos.md").read_text()
    record = lines(small, "photos_vqa")["vqa-val-dense"]
    assert f"| questions | {record['scores']['accuracy']:.1f} |" in text and "{" not in text
    for name in ("scores_retrieval", "learning_retrieval"):
        assert (tmp_path / "photos" / f"{name}.png").stat().st_size > 1000


@needs_5
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(small, capsys):
    assert small.run("--task", "caption", "--device", "cuda") == 2
    assert "--device cuda" in capsys.readouterr().err


@needs_5
def test_what_is_not_trained_is_asked_for(small, capsys):
    assert small.run("--task", "caption", "--blind") == 2
    assert "--dense caption --blind" in capsys.readouterr().err
