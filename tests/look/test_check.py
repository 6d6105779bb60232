"""Checking data before a run: what is whole passes, and whatever is broken is named with the place where it is."""

import json
import os
import re
import shutil
from argparse import ArgumentParser
from pathlib import Path

import pytest

from compress_nlvr_dtp import NLVR
from madtp.__main__ import main
from madtp.look import command_line
from madtp.look.check import Findings, verdict
from madtp.look.scripts import task_named
from madtp.run.config import task_of
from madtp.run.engine import main as engine_main
from tests.look.small import CLIP
from tests.miniature import make_data, write_config

TASKS = {"nlvr": {}, "caption": {"prompt": "a "}, "vqa": {"inference": "rank"}, "retrieval": {"dataset": "flickr"}}
TASKS["retrieval_clip"] = {"dataset": "flickr", "clip": CLIP}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make_data(folder)
    return folder


@pytest.fixture
def data(whole, tmp_path):
    """A copy to break."""
    return shutil.copytree(whole, tmp_path / "data")


@pytest.fixture
def examine(tmp_path, capsys):
    """Checks a data set for a task; returns the exit status and what was printed."""

    def examine(data, task, *flags):
        config = write_config(data, tmp_path / f"{task}.yaml", task, **TASKS[task])
        status = main(["check", "--config", str(config), "--num_workers", "2", *flags])
        captured = capsys.readouterr()
        assert captured.err == "" or status == 2
        return status, captured.out + captured.err

    return examine


def change(data, name, *, entries=None, **values):
    """Replaces what the first entry of an annotation file says, or the whole list."""
    path = data / "annotation" / f"{name}.json"
    first, *rest = json.loads(path.read_text())
    path.write_text(json.dumps([first | values, *rest] if entries is None else entries))


@pytest.mark.parametrize("task", TASKS)
def test_whole_data_passes_with_its_counts(whole, examine, task):
    status, said = examine(whole, task)
    assert status == 0 and said.endswith("training has all that it needs\n") and "other files" not in said
    assert said.partition("\n")[0].endswith(f"/{task}.yaml: {task}")
    names = {"nlvr": "nlvr_dev", "caption": "coco_karpathy_val", "vqa": "vqa_val"}
    entries = json.loads((whole / "annotation" / f"{names.get(task, 'flickr30k_val')}.json").read_text())
    images = {image for entry in entries for image in entry.get("images", [entry.get("image")])}
    assert f"val: {len(entries)} entries, {len(images)} images\n" in said


def test_images_are_counted_and_ten_of_them_named(data, examine):
    test = json.loads((data / "annotation/nlvr_test.json").read_text())
    gone = sorted({image for entry in test for image in entry["images"]})[:13]
    for name in gone:
        (data / "images" / name).unlink()
    upper = (data / "images" / gone[0]).with_suffix(".PNG")
    upper.write_bytes(b"")
    (train, *_), *_ = (entry["images"] for entry in json.loads((data / "annotation/nlvr_train.json").read_text()))
    os.truncate(data / "images" / train, 100)
    status, said = examine(data, "nlvr")
    assert status == 1 and said.endswith("training would fail\n")
    train_part, test_part = said.split("\ntest: ")
    assert re.search(rf"unreadable images: 1\n    \S+/{train} \(\S+/nlvr_train.json, entry 0\): \w+", train_part)
    assert "missing images" not in train_part and "missing images: 13\n" in test_part
    assert f"): {upper.name} is there\n" in test_part
    named = re.findall(rf"^    {data}/images/(\S+) \({data}/annotation/nlvr_test.json, entry \d+\)", test_part, re.M)
    assert len(named) == 10 and set(named) < set(gone) and "    and 3 more\n" in test_part


def test_of_every_kind_ten_are_named_on_a_line_each():
    found = Findings(faults={"few": ["a\nb"] * 10, "many": ["c"] * 11}, remarks=["d"])
    assert [*found.lines("val")] == [
        "val:", "  few: 10", *["    a b"] * 10, "  many: 11", *["    c"] * 10, "    and 1 more", "  d"
    ]  # fmt: skip


def test_skipping_is_offered_while_all_that_is_drawn_in_a_place_is_hardly_ever_bad():
    """In a run of N samples, s of whose entries are without an image, all eleven that are drawn are so s^11 N times."""

    def said(bad, epochs=10, other="val", **faults):
        one, two, three = map(Path, "123")
        named = [[one, two]] * bad + [[two, three]] * (1000 - bad)
        train = Findings(entries=1000, named=named, bad={one}, faults={"unreadable images": ["1"]} | faults)
        return verdict({"train": train, other: Findings(faults={} if other == "val" else {"files": ["2"]})}, epochs)

    assert (280 / 1000) ** 11 * 1000 * 10 < 0.01 < (290 / 1000) ** 11 * 1000 * 10
    assert said(280) == said(280, **{"duplicate entries": ["3"]}) == said(290, epochs=1)
    assert said(280) == "training would fail, but not with --bad_images skip"
    assert said(290) == "training would fail, also with --bad_images skip: 29% of the entries are without their images"
    assert said(280, **{"wrong labels": ["3"]}) == said(280, other="test") == "training would fail"


def test_what_training_could_skip_is_said(data, examine):
    name = json.loads((data / "annotation/nlvr_train.json").read_text())[0]["images"][0]
    (data / "images" / name).write_bytes(b"junk")
    status, said = examine(data, "nlvr")
    assert status == 1 and said.endswith("training would fail, but not with --bad_images skip\n")


def test_nothing_is_promised_where_all_images_are_missing(data, examine):
    shutil.rmtree(data / "images/train")
    status, said = examine(data, "nlvr")
    assert status == 1
    assert said.endswith(
        "training would fail, also with --bad_images skip: 100% of the entries are without their images\n"
    )


@pytest.mark.parametrize("task, name, field", [("nlvr", "nlvr_test", "sentence"), ("vqa", "vqa_train", "answer")])
def test_texts_too_long_for_the_model_are_named(data, examine, task, name, field):
    words = "1," * 40  # one word, so nothing is cut before it is tokenized
    change(data, name, **{field: words if field == "sentence" else [words]})
    status, said = examine(data, task)
    assert status == 1
    assert re.search(
        rf"texts too long: 1\n    {data}/annotation/{name}.json, entry 0: the \w+ has \d+ tokens, the position "
        r"embeddings allow 64 \(max_position_embeddings of med_config\); shorten it",
        said,
    )


def test_the_run_refuses_what_the_check_names(data, examine, tmp_path, capsys):
    change(data, "nlvr_dev", sentence="1," * 40)
    _, said = examine(data, "nlvr")
    fault = re.search(r"texts too long: 1\n    (.*)\n", said)[1]
    flags = ["--config", tmp_path / "nlvr.yaml", "--output_dir", tmp_path / "out", "--num_workers", "0", "--p", "0"]
    assert engine_main(NLVR(), [str(flag) for flag in flags]) == 2
    assert capsys.readouterr().err == f"error: {fault}\n"


def test_texts_that_are_cut_are_counted(data, examine):
    change(data, "vqa_val", question="is there a red circle " * 9)
    status, said = examine(data, "vqa")
    assert status == 0 and "question: at most 47 tokens, 1 are cut after 35\n" in said


def test_what_the_answers_allow_is_said(data, examine):
    (data / "annotation/answer_list.json").write_text('["yes", "no"]')
    entries = json.loads((data / "annotation/vqa_val.json").read_text())
    change(
        data, "vqa_val", entries=[{**entry, "answer": ["yes", "no"][: 1 + n % 2]} for n, entry in enumerate(entries)]
    )
    status, said = examine(data, "vqa")
    assert (
        status == 0 and f"{len(entries)} questions have at most 3 answers, of which accuracy counts the share" in said
    )
    assert "answer_list.json can answer 100.0 % of the questions, for an accuracy of " in said


def test_test_questions_some_of_which_have_answers(data, examine):
    change(data, "vqa_test", answer=["yes"] * 10)
    status, said = examine(data, "vqa")
    assert status == 0 and re.search(r"\d+ of \d+ questions lack an answer, so there is no accuracy", said)


def test_remarks_on_retrieval(data, examine):
    entries = json.loads((data / "annotation/flickr30k_val.json").read_text())
    twice = [{**entries[0], "caption": ["A red circle."]}, {**entries[0], "caption": ["a red circle"]}, *entries[2:]]
    change(data, "flickr30k_val", entries=twice)
    status, said = examine(data, "retrieval", "--set", "k_test=4")
    assert status == 0 and f"1 of {len(twice)} images repeat others; whichever of them is found, it is" in said
    assert (
        re.search(r"\d+ of \d+ texts repeat others", said) and "k_test 4: only that many candidates are judged" in said
    )
    assert re.search(
        r"the queue holds 57600 features, the split only \d+ captions: set queue_size to \d+ or less", said
    )


def test_names_that_are_spelled_otherwise_are_found(data, examine):
    name, other = json.loads((data / "annotation/nlvr_dev.json").read_text())[0]["images"]
    shutil.copy(data / "images" / name, data / "images/cafe\u0301.png")
    change(data, "nlvr_dev", images=["caf\u00e9.png", other.replace("/", "\\")])
    status, said = examine(data, "nlvr")
    assert status == 0 and "images of another spelling: 2\n" in said and "is read as 'cafe\u0301.png'" in said


def test_published_files_are_recognised(data, examine):
    line = {"identifier": "dev-1-0-0", "sentence": "Two dogs.", "label": "True", "left_url": "", "right_url": ""}
    (data / "annotation/nlvr_dev.json").write_text("\n".join(json.dumps(line) for _ in range(3)))
    status, said = examine(data, "nlvr")
    assert status == 1 and "nlvr2 is published so, convert it: python -m madtp convert nlvr2 " in said
    change(data, "nlvr_train", entries=[{"id": 1, "qas": []}] * 30)
    status, said = examine(data, "nlvr")
    assert "visual_genome is published so, convert it: python -m madtp convert visual_genome " in said


def test_a_model_that_cannot_be_built_is_found(data, examine):
    status, said = examine(data, "nlvr", "--set", "pretrained=nowhere.pth", "image_size=50")
    assert status == 1 and "image_size 50 is no multiple of patch_size 12" in said
    status, said = examine(data, "nlvr", "--set", "pretrained=nowhere.pth")
    assert status == 1 and "nowhere.pth" in said
    status, said = examine(data, "nlvr", "--set", "distill=10")
    assert status == 1 and "no dense model to learn from" in said


@pytest.mark.parametrize(
    "task, name, values, complaint",
    [
        ("nlvr", "nlvr_dev", {"label": "maybe"}, "wrong labels: 1\n    {}: 'label' should be 'True' or 'False'"),
        ("nlvr", "nlvr_train", {"sentence": None}, "entries of a wrong form: 1\n    {}: 'sentence' should be a string"),
        ("nlvr", "nlvr_train", {"images": ["../x", "y"]}, "entries of a wrong form: 1\n    {}: image '../x' lies out"),
        ("vqa", "vg_qa", {"answer": ["yes"]}, "wrong labels: 1\n    {}: dataset 'vg' with answer"),
        ("vqa", "vqa_test", {"dataset": "gqa"}, "entries of a wrong form: 1\n    {}: 'dataset' should be one of"),
        ("vqa", "vqa_val", {"answer": None}, "wrong labels: 1\n    {}: no 'answer', and without it no checkpoint"),
        ("retrieval", "flickr30k_val", {"caption": "one"}, "entries of a wrong form: 1\n    {}: 'caption' should be a"),
    ],
)
def test_an_entry_is_named_with_its_file(data, examine, task, name, values, complaint):
    change(data, name, **values)
    status, said = examine(data, task)
    assert status == 1 and complaint.format(f"{data}/annotation/{name}.json, entry 0") in said


def test_duplicates_are_named_and_harmless(data, examine):
    entries = json.loads((data / "annotation/nlvr_train.json").read_text())
    change(data, "nlvr_train", entries=[*entries, {**entries[2], "label": "True"}])
    status, said = examine(data, "nlvr", "--num_workers", "0")
    file = data / "annotation/nlvr_train.json"
    assert status == 0
    assert (
        f"duplicate entries: 1\n    {file}, entry {len(entries)}: the same images and sentence as in {file}, entry 2\n"
    ) in said


@pytest.mark.parametrize(
    "task, path, complaint",
    [
        ("nlvr", "annotation/nlvr_dev.json", "nlvr_dev.json: No such file"),
        ("nlvr", "images", "image_root: {}/images is not a folder"),
        ("nlvr", "tokenizer/vocab.txt", "no vocab.txt in {}/tokenizer"),
        ("vqa", "annotation/answer_list.json", "answer_list.json: No such file"),
    ],
)
def test_a_missing_file_would_stop_training(data, examine, task, path, complaint):
    (data / path).rename(data / "elsewhere")
    status, said = examine(data, task)
    assert status == 1 and complaint.format(data) in said and "missing images" not in said


def test_too_few_samples_for_a_batch(data, examine):
    status, said = examine(data, "nlvr", "--set", "batch_size_train=1000")
    assert status == 1 and "less than one batch of 1000" in said


def test_the_truth_for_captions_is_looked_at(data, examine):
    path = data / "annotation/coco_gt/coco_karpathy_test_gt.json"
    truth = json.loads(path.read_text())
    lost = truth["images"][4]["id"]
    truth["annotations"] = [one for one in truth["annotations"] if one["image_id"] != lost]
    path.write_text(json.dumps(truth))
    status, said = examine(data, "caption")
    assert status == 1 and re.search(rf"_test_gt.json has no caption of 1 images, the first is test/0*{lost}.png", said)
    path.unlink()
    status, said = examine(data, "caption")
    assert status == 0 and f"captions are scored against the annotations, there is no {path}" in said


def test_a_wrong_configuration_is_an_error_of_its_own(examine, data):
    status, said = examine(data, "nlvr", "--set", "image_sise=3")
    assert status == 2 and said.startswith("error: --set: unknown key 'image_sise'") and said.count("\n") == 1
    status, said = examine(data, "nlvr", "--set", "min_lr=1")
    assert status == 2 and said.startswith("error: min_lr 1 is above init_lr") and said.count("\n") == 1
    status, said = examine(data, "nlvr", "--num_workers", "-1")
    assert status == 2 and said == "error: --num_workers is -1, expected at least 0\n"
    assert examine(data, "nlvr", "--num_workers", str(10**20))[0] == 0  # no more threads than pictures


def test_every_task_that_can_be_named_is_one():
    parser = ArgumentParser()
    command_line.check(parser)
    (names,) = (action.choices for action in parser._actions if action.dest == "task")
    assert {name: task_named(name).name for name in names} == {name: name for name in names}


def test_every_configuration_tells_its_task():
    told = {path.stem: task_of(str(path)) for path in Path("configs").glob("*.yaml")}
    assert told == {
        "nlvr": "nlvr",
        "caption_coco": "caption",
        "vqa": "vqa",
        "retrieval_coco": "retrieval",
        "retrieval_flickr": "retrieval",
        "retrieval_coco_clip": "retrieval_clip",
        "retrieval_flickr_clip": "retrieval_clip",
    }
    told = {path.stem: task_of(str(path)) for path in Path("configs/demo").glob("*.yaml")}
    names = {"clip": "retrieval_clip"}
    assert told == {name: names.get(name, name) for name in told}
