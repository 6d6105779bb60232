"""Checking data before a run: what is whole passes, and whatever is broken is named with the place where it is."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from madtp.__main__ import main
from madtp.run.config import task_of
from tests.miniature import make_data, write_config

TASKS = {"nlvr": {}, "caption": {"prompt": "a "}, "vqa": {"inference": "rank"}, "retrieval": {"dataset": "flickr"}}


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
    names = {"nlvr": "nlvr_dev", "caption": "coco_karpathy_val", "vqa": "vqa_val", "retrieval": "flickr30k_val"}
    entries = json.loads((whole / "annotation" / f"{names[task]}.json").read_text())
    images = {image for entry in entries for image in entry.get("images", [entry.get("image")])}
    assert f"val: {len(entries)} entries, {len(images)} images\n" in said


def test_images_are_counted_and_ten_of_them_named(data, examine):
    test = json.loads((data / "annotation/nlvr_test.json").read_text())
    gone = sorted({image for entry in test for image in entry["images"]})[:13]
    for name in gone:
        (data / "images" / name).unlink()
    (train, *_), *_ = (entry["images"] for entry in json.loads((data / "annotation/nlvr_train.json").read_text()))
    os.truncate(data / "images" / train, 100)
    status, said = examine(data, "nlvr")
    assert status == 1 and said.endswith("training would fail\n")
    train_part, test_part = said.split("\ntest: ")
    assert re.search(rf"unreadable images: 1\n    \S+/{train} \(\S+/nlvr_train.json, entry 0\): \w+", train_part)
    assert "missing images" not in train_part and "missing images: 13\n" in test_part
    named = re.findall(rf"^    {data}/images/(\S+) \({data}/annotation/nlvr_test.json, entry \d+\)$", test_part, re.M)
    assert len(named) == 10 and set(named) < set(gone) and "    and 3 more\n" in test_part


def test_what_training_could_skip_is_said(data, examine):
    name = json.loads((data / "annotation/nlvr_train.json").read_text())[0]["images"][0]
    (data / "images" / name).write_bytes(b"junk")
    status, said = examine(data, "nlvr")
    assert status == 1 and said.endswith("training would fail, but not with --bad_images skip\n")


@pytest.mark.parametrize(
    "task, name, values, complaint",
    [
        ("nlvr", "nlvr_dev", {"label": "maybe"}, "wrong labels: 1\n    {}: 'label' should be 'True' or 'False'"),
        ("nlvr", "nlvr_train", {"sentence": None}, "entries of a wrong form: 1\n    {}: 'sentence' should be a string"),
        ("nlvr", "nlvr_train", {"images": ["../x", "y"]}, "entries of a wrong form: 1\n    {}: image '../x' lies out"),
        ("vqa", "vg_qa", {"answer": ["yes"]}, "wrong labels: 1\n    {}: dataset 'vg' with answer"),
        ("vqa", "vqa_test", {"dataset": "gqa"}, "entries of a wrong form: 1\n    {}: 'dataset' should be one of"),
        ("caption", "coco_karpathy_test", {"image": "cat.png"}, "entries of a wrong form: 1\n    {}: image 'cat.png'"),
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
    status, said = examine(data, "nlvr")
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
    assert status == 1 and re.search(rf"_test_gt.json has no caption of 1 images, the first is 0*{lost}.png", said)
    path.unlink()
    status, said = examine(data, "caption")
    assert status == 0 and f"no ground truth: 1\n    {path}: captions are scored against the annotations" in said


def test_a_wrong_configuration_is_an_error_of_its_own(examine, data):
    status, said = examine(data, "nlvr", "--set", "image_sise=3")
    assert status == 2 and said.startswith("error: --set: unknown key 'image_sise'") and said.count("\n") == 1


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
