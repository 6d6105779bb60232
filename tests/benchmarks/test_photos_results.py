"""What is made of the photos' results: scores, differences, tables. No model is run here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.comparison import reporting
from benchmarks.photos import cells, finetuned, plots, report, reranking, verdicts
from benchmarks.photos.results import Results, chance
from benchmarks.photos.results import lesson as learned_by
from benchmarks.photos.scoring import accuracy_of_photos, recall_of_photos
from benchmarks.photos.world import Photo, Places, read_split, texts_of
from utils import UserError


def test_a_score_is_worth_what_it_has_of_dense_beyond_blind(tmp_path):
    given = {"dense": ("", 0.0, [50, 30]), "blind": ("", 0.0, [20, 20]), "tome": ("even", 0.5, [40, 25])}
    written = []
    for rule, (schedule, p, photos) in given.items():
        cell = cells.Cell("vqa", "val", rule, schedule, p)
        written.append({"name": cell.name, "task": "vqa", "rule": rule, "schedule": schedule, "p": p})
        written[-1] |= {"photos": photos, "questions": [1, 1], "scores": {"accuracy": sum(photos) / 2}}
    (tmp_path / "photos_vqa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in written))
    found = Results(tmp_path, tmp_path)
    (record,) = found.at("vqa", 0.5)
    assert found.worth(record) == pytest.approx(62.5) and found.worth(found.dense("vqa")) == 100
    assert found.against(record, found.dense("vqa")).value == pytest.approx(-7.5)
    assert found.blind("retrieval") is None and found.comparisons == 2
    assert chance(1000) == pytest.approx(16 / 30)


def test_seeds_are_averaged_photo_by_photo_before_methods_are_compared(tmp_path):
    given = {("dense", 0.0): ([50, 30], [54, 30]), ("tome", 0.5): ([40, 20], [44, 28]), ("image", 0.5): ([40, 20],)}
    written = []
    for (rule, p), seeds in given.items():
        for seed, photos in enumerate(seeds, 1):
            cell = cells.Tuned("retrieval", "val", rule, "", p, seed, 100)
            written.append(
                {"name": cell.name, "task": "retrieval", "split": "val", "rule": rule, "schedule": "", "p": p}
            )
            written[-1] |= {"seed": seed, "steps": 100, "percent": 100 - 100 * p, "photos": photos}
            written[-1] |= {"scores": {"r_mean": sum(photos) / 2}}
    (tmp_path / "photos_retrieval_tuned.jsonl").write_text("".join(json.dumps(one) + "\n" for one in written))
    found = Results(tmp_path, tmp_path)
    (tome,) = [one for one in finetuned.at(found, "retrieval", 0.5) if one["rule"] == "tome"]
    assert tome["photos"] == [42, 24] and tome["scores"] == {"r_mean": 33} and tome["seeds"] == [1, 2]
    assert finetuned.tuned_gap(found, "retrieval", "0.5", "tome", "dense").startswith("−8.0 [")
    assert finetuned.tuned_gap(found, "retrieval", "0.5", "tome", "image").startswith("+0.0 ["), "by the seed of both"
    assert finetuned.tuned_value(found, "retrieval", "0.5", "image") == "30.0" and finetuned.comparisons(found) == 3
    assert "| ToMe | 50.0 | 100 | 1, 2 |" in finetuned.finetuned(found, "retrieval")
    asked = "retrieval", "0.5", "tome", "dense"
    assert report.on_test(found, "tuned_gap", *asked) == "not run"
    tested = [one | {"name": one["name"].replace("val", "test"), "split": "test"} for one in written]
    (tmp_path / "photos_retrieval_tuned_final.jsonl").write_text("".join(json.dumps(one) + "\n" for one in tested))
    assert report.on_test(found, "tuned_gap", *asked).startswith("−8.0 [")
    assert report.on_test(found, "every_cell") == f"retrieval, fine-tuned:\n\n{finetuned.finetuned(found, 'retrieval')}"
    assert report.comparisons(found) == "6", "on both splits"


def test_three_rules_stand_beside_each_other_before_and_after_fine_tuning(tmp_path):
    """What is out of reach, or was not run, is said; a row that nobody ran is left out."""
    given = {("dense", "", 0.0): [50, 40], ("coverage", "searched", 0.5): [40, 30], ("tome", "searched", 0.5): None}
    given |= {("image", "", 0.7): [20, 20]}
    before, after = [], []
    for (rule, schedule, p), photos in given.items():
        cell, tuned = cells.Cell("vqa", "val", rule, schedule, p), cells.Tuned("vqa", "val", rule, schedule, p, 1, 100)
        line = {"task": "vqa", "split": "val", "rule": rule, "schedule": schedule, "p": p, "seed": 1, "steps": 100}
        line |= {"percent": 100 - 100 * p, "image_percent": 100 - 100 * p}
        scored = {} if photos is None else {"photos": photos, "scores": {"accuracy": sum(photos) / 2}}
        before.append(line | {"name": cell.name} | scored)
        after += [line | {"name": tuned.name} | scored] * (rule in ("dense", "coverage"))
    for name, written in (("photos_vqa", before), ("photos_vqa_tuned", after)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in written))
    found = Results(tmp_path, tmp_path)
    assert report.three_rules(found).splitlines()[2:] == [
        "| questions, accuracy | 50 % | no | 45.0 | 35.0 | out of reach | not run | — | not run |",
        "| questions, accuracy | 50 % | yes | 45.0 | 35.0 | not run | not run | not run | not run |",
        "| questions, accuracy | 30 % | no | 45.0 | not run | not run | 20.0 | not run | not run |",
    ]
    shown = report.compared(found, "vqa", "0.5")
    assert "| coverage, searched | 50.0 | 50.0 | 35.0 |" in shown and shown.endswith(
        "\n\nOut of reach: ToMe, searched."
    )


def test_each_side_stands_for_itself_by_its_best(tmp_path):
    given = {("coverage", "even"): [50, 40], ("coverage", "front"): [52, 44], ("tome", "even"): [30, 40]}
    given |= {
        (cells.LENGTHENED, "front"): [54, 46],
        (cells.TOME_TOO, "even"): [32, 40],
        ("important", "front"): [20, 20],
    }
    given |= {(variant, "front"): [60, 60] for variant in (cells.COUNTED, cells.BY_TEXT)}  # no rule of the library
    written = []
    for (rule, schedule), photos in given.items():
        cell = cells.Cell("retrieval", "val", rule, schedule, 0.5)
        line = {"name": cell.name, "task": "retrieval", "split": "val", "rule": rule, "schedule": schedule, "p": 0.5}
        written.append(line | {"photos": photos, "scores": {"r_mean": sum(photos) / 2}})
    (tmp_path / "photos_retrieval.jsonl").write_text("".join(json.dumps(one) + "\n" for one in written))
    found = Results(tmp_path, tmp_path)
    *_, row = verdicts.against_the_best(found).splitlines()
    assert "| no | coverage, lengths kept, front, 50.0 | ToMe, lengths kept, even, 36.0 | +14.0 [" in row
    assert row.endswith("| ahead |")
    assert verdicts.verdicts(found) == "ahead in 1 of 1 cases, not below in 0, undecided in 0, behind in 0"


def test_what_was_learned_from_a_dense_model_is_held_against_the_task_alone(tmp_path):
    given = {("dense", 0.0, "task"): [52, 30], ("tome", 0.5, "task"): [40, 20], ("tome", 0.5, "distilled"): [44, 30]}
    written = []
    for (rule, p, lesson), photos in given.items():
        cell = cells.Tuned("retrieval", "val", rule, "", p, 1, 100, lesson)
        line = {"name": cell.name, "task": "retrieval", "split": "val", "rule": rule, "schedule": "", "p": p, "seed": 1}
        written.append(line | cell.told | {"steps": 100, "percent": 100 - 100 * p, "photos": photos})
        written[-1] |= {"scores": {"r_mean": sum(photos) / 2}, "curve": [{"step": 50, "score": photos[0] / 4}]}
    (tmp_path / "photos_retrieval_tuned.jsonl").write_text("".join(json.dumps(one) + "\n" for one in written))
    found = Results(tmp_path, tmp_path)
    assert len(found.tuned) == 3 and written[-1]["name"].endswith("-1-distilled")
    assert finetuned.tuned_value(found, "retrieval", "0.5", "tome") == "30.0", "by the task alone"
    learned = "distilled", "100", "task", "100"
    assert finetuned.lesson_gap(found, "retrieval", "0.5", "tome", "", *learned).startswith("+7.0 [")
    assert finetuned.lesson_gap(found, "retrieval", "0.5", "image", "", *learned) == "not run"
    way = [finetuned.on_the_way(found, "retrieval", "0.5", "tome", "", "distilled", step) for step in ("50", "100")]
    assert way == ["11.0", "not run"]
    assert "| ToMe, distilled |" in finetuned.finetuned(found, "retrieval")
    later = cells.Tuned("retrieval", "val", "tome", "", 0.5, 1, 100, "distilled", "trained")
    assert finetuned.named(written[-1] | later.told) == "ToMe, distilled, from the trained dense model"
    assert learned_by(written[-1] | later.told) == "distilled_trained" and later.name.endswith("-1-distilled-trained")


def test_a_test_split_that_was_looked_at_is_not_scored(tmp_path):
    places = Places(tmp_path, tmp_path, tmp_path, tmp_path)
    (tmp_path / "annotation").mkdir()
    entries = [{"image": f"{number}.jpg", "caption": ["a dog"]} for number in range(513)]
    for count in (512, 513):
        places.annotation("flickr30k_test").write_text(json.dumps(entries[:count]))
        assert len(read_split(places, "retrieval", "test")) == count
        if count == 513:
            assert [photo.name for photo in read_split(places, "retrieval", "test", final=True)] == ["512.jpg"]
        else:
            with pytest.raises(UserError, match="no photos to score besides the first 512, which --final leaves out"):
                read_split(places, "retrieval", "test", final=True)


@pytest.mark.parametrize("task", ["retrieval", "caption", "vqa"])
def test_every_line_of_learning_has_a_look_and_a_name_of_its_own(task, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plots.learning(Results(Path(__file__).parents[2] / "benchmarks/results", tmp_path), tmp_path, task)
    lines = drawn[0].axes[-1].lines
    names = {line.get_label() for line in lines}
    what = ("color", "linestyle", "marker", "alpha", "fillstyle")
    looks = {tuple(getattr(line, f"get_{one}")() for one in what) for line in lines}
    assert len(names) == len(looks) == len(lines)


def test_models_that_were_trained_for_longer_are_a_world_of_their_own(tmp_path):
    for folder, score in ((tmp_path, 40), (tmp_path / report.LONGER, 50)):
        folder.mkdir(exist_ok=True)
        cell = cells.Cell("caption", "val", "tome", "even", 0.5)
        line = {"name": cell.name, "task": "caption", "rule": "tome", "schedule": "even", "p": 0.5}
        (folder / "photos_caption.jsonl").write_text(json.dumps(line | {"scores": {"CIDEr": score}}) + "\n")
    found = Results(tmp_path, tmp_path)
    asked = "caption", "0.5", "tome", "even"
    assert report.value(found, *asked) == "40.0" and report.longer(found, "value", *asked) == "50.0"


def test_rules_that_leave_equally_many_tokens_share_a_line(tmp_path, monkeypatch):
    given = {
        ("tome", "even"): [3, 2],
        ("random", "even"): [3, 2],
        ("pitome", "front"): [2, 2],
        ("tome", "front"): [1, 1],
    }
    written = []
    for number, ((rule, schedule), tokens) in enumerate(given.items()):
        cell = cells.Cell("retrieval", "val", rule, schedule, 0.5)
        line = {"name": cell.name, "task": "retrieval", "split": "val", "rule": rule, "schedule": schedule, "p": 0.5}
        written.append(line | {"tokens": tokens, "scores": {"r_mean": 40 - number}})
    (tmp_path / "photos_retrieval.jsonl").write_text("".join(json.dumps(one) + "\n" for one in written))
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plots.tokens(Results(tmp_path, tmp_path), tmp_path, "retrieval", "0.5")
    found = {line.get_label(): list(line.get_ydata()) for line in drawn[0].axes[0].lines}
    assert found == {"ToMe, even; random, merged, even": [3, 2], "PiToMe, front": [2, 2]}


def test_the_template_asks_for_nothing_unknown():
    asked = {place.split()[0] for place, _ in reporting.PLACE.findall(report.WORDS.read_text())}
    assert asked <= set(report.BLOCKS)


def test_recall_of_a_photo_is_its_own_and_its_captions():
    draw = torch.Generator().manual_seed(0)
    image, text, owners = torch.randn(20, 4, generator=draw), torch.randn(45, 4, generator=draw), []
    owners = [number % 20 for number in range(45)]
    found, similarity = recall_of_photos(image, text, owners), image @ text.T
    for photo in range(20):
        own = [number for number in range(45) if owners[number] == photo]
        ranked = similarity[photo].argsort(descending=True).tolist()
        places = [similarity[:, number].argsort(descending=True).tolist().index(photo) for number in own]
        for k in (1, 5, 10):
            assert found[f"txt_r{k}"][photo] == 100 * bool(set(ranked[:k]) & set(own))
            assert found[f"img_r{k}"][photo] == pytest.approx(100 * np.mean([place < k for place in places]))
    parts = [found[f"{way}_r{k}"] for way in ("txt", "img") for k in (1, 5, 10)]
    assert np.allclose(found["r_mean"], np.mean(parts, axis=0))


def test_answers_are_counted_by_photo():
    found = accuracy_of_photos([["cat", "two"], ["dog"]], [["cat", "2"], ["a cat"]])
    assert found["right"].tolist() == [200, 0] and found["questions"].tolist() == [2, 1]


def test_every_cell_comes_once_and_after_the_one_it_needs():
    planned = cells.plan("caption", "val")
    places = {cell: place for place, cell in enumerate(planned)}
    assert len(places) == len(planned) and len({cell.name for cell in planned}) == len(planned)
    assert all(places[cell.earlier] < places[cell] for cell in planned if cell.earlier)
    asked = cells.plan("caption", "val", ["tome"], ["madtp"], [0.5])
    assert [cell.name for cell in asked] == ["caption-val-dense", "caption-val-image-0.5", "caption-val-tome-madtp-0.5"]


def test_only_a_short_list_is_judged_and_by_similarity_and_gain(monkeypatch):
    monkeypatch.setattr(reranking, "SHORT_LIST", 2)
    photos = [Photo(str(photo), tuple(f"{photo} {text}" for text in range(1 + photo % 2))) for photo in range(6)]
    captions, owners = texts_of(photos)
    similarity = torch.randn(len(photos), len(captions), generator=torch.Generator().manual_seed(0))
    gains = 100 * torch.randn(similarity.shape, generator=torch.Generator().manual_seed(1))

    def gain(photo, numbers, texts):
        assert texts == [captions[one] for one in numbers]
        return gains[photo, numbers]

    found = reranking.reranked(similarity, photos, gain)
    for photo, scores in enumerate(similarity.tolist()):
        listed = sorted(range(len(captions)), key=lambda one: -scores[one])[:2]
        best = max(listed, key=lambda one: reranking.TO_TEXT * scores[one] + gains[photo, one])
        assert found["txt_r1"][photo] == 100 * (owners[best] == photo)
    for photo in range(len(photos)):
        first = []
        for caption in (one for one, owner in enumerate(owners) if owner == photo):
            scores = similarity[:, caption].tolist()
            listed = sorted(range(len(photos)), key=lambda one: -scores[one])[:2]
            first.append(max(listed, key=lambda one: reranking.TO_PHOTO * scores[one] + gains[one, caption]) == photo)
        assert found["img_r1"][photo] == pytest.approx(100 * np.mean(first))


@pytest.mark.parametrize("task", ["statements", "reranking"])
def test_what_has_no_model_of_its_own_trains_none(task):
    assert not any(cell.trained for cell in cells.plan(task, "val"))
    tuned = cells.Tuned(task, "test", "tome", "even", 0.5, 2, 100)
    assert tuned.source == cells.Tuned(tuned.model, "val", "tome", "even", 0.5, 2, 100)
    assert tuned.weights == tuned.source.weights == f"{tuned.model}-tome-even-0.5-tuned-100-2"
