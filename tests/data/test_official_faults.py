"""Official files that are not whole: faults are named with file and place, and what belongs to nothing is counted."""

import gzip
import json
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest

from data.official import FORMS
from data.official.captions import coco_folders
from data.official.conversion import Draw
from data.official.records import LeftOut, Record, Source, split_in
from tests.data.official_files import (
    coco_file,
    flickr_files,
    genome_question,
    karpathy_file,
    vizwiz_question,
    vqa_files,
    write,
)
from utils import UserError

ASKED = [(7, 3, "Is it a dog?", ["yes"] * 10), (8, 4, "Is it a cat?", ["no"] * 10)]
NAMES = [(f"COCO_val2014_{number:012d}.jpg", number, ["A dog.", "A cat."]) for number in (5, 6)]
FILES = {
    "vqav2": lambda folder: vqa_files(folder, "train2014", ASKED),
    "test": lambda folder: vqa_files(folder, "test2015", ASKED, answered=False),
    "coco": lambda folder: coco_file(folder, "val2014", NAMES),
    "karpathy": lambda folder: karpathy_file(folder, "coco", [(name, "val", said) for name, _, said in NAMES]),
    "vizwiz": lambda folder: write(folder, {"train": [vizwiz_question("train", n, "?", ["a"]) for n in range(2)]}),
    "visual_genome": lambda folder: write(
        folder,
        {"question_answers": [{"id": n, "qas": [genome_question(n, n, "Who?", "A man.")]} for n in range(2)]},
    ),
}


def read(form, paths, split=""):
    return list(FORMS["vqav2" if form == "test" else form].read([Source(path, split) for path in paths]))


def changed(paths, change):
    """Rewrites the files whose content is what `change` looks for; returns them."""
    found = []
    for path in paths:
        content = json.loads(path.read_text())
        try:
            change(content)
        except (KeyError, TypeError):
            continue
        path.write_text(json.dumps(content))
        found.append(path)
    return found


@pytest.mark.parametrize(
    "form, place, fields",
    [
        ("vqav2", ("questions", -1), "question_id question image_id"),
        ("vqav2", ("annotations", -1), "question_id answers"),
        ("vqav2", ("annotations", -1, "answers", -1), "answer"),
        ("test", ("questions", -1), "question_id question image_id"),
        ("coco", ("images", -1), "id file_name"),
        ("karpathy", ("images", -1), "filename split sentences filepath cocoid"),
        ("karpathy", ("images", -1, "sentences", -1), "raw"),
        ("vizwiz", (-1,), "image question"),
        ("vizwiz", (-1, "answers", -1), "answer"),
        ("visual_genome", (-1, "qas", -1), "qa_id image_id question answer"),
    ],
)
def test_a_field_that_is_missing_is_named_with_its_entry(tmp_path, form, place, fields):
    for field in fields.split():
        paths = FILES[form](tmp_path)
        (path,) = changed(paths, lambda content, field=field: reduce(getitem, place, content).pop(field))
        with pytest.raises(UserError, match=f"^{path}, entry 1: '{field}' should be a"):
            read(form, paths)


@pytest.mark.parametrize("field", ["image_id", "caption"])
def test_a_caption_without_a_field_is_named(tmp_path, field):
    (path,) = changed(FILES["coco"](tmp_path), lambda content: content["annotations"][2].pop(field))
    with pytest.raises(UserError, match=f"^{path}, entry 2: '{field}' should be a"):
        read("coco", [path])


@pytest.mark.parametrize("answers", [[], "yes"])
def test_answers_are_a_list_of_some(tmp_path, answers):
    paths = FILES["vqav2"](tmp_path)
    changed(paths, lambda content: content["annotations"][0].update(answers=answers))
    with pytest.raises(UserError, match=f"^{paths[1]}, entry 0: 'answers' should be a list, it is "):
        read("vqav2", paths)


@pytest.mark.parametrize("image", [{"id": 1}, {"id": 1, "qas": {}}, "a"])
def test_a_picture_of_visual_genome_has_its_questions(tmp_path, image):
    (path,) = write(tmp_path, {"question_answers": [{"id": 0, "qas": []}, image]})
    with pytest.raises(UserError, match=f"^{path}, entry 1: expected {{'id': ..., 'qas': "):
        read("visual_genome", [path])


def test_what_belongs_to_nothing_is_counted(tmp_path):
    """And whatever comes after it is read."""
    paths = FILES["vqav2"](tmp_path)
    changed(paths, lambda content: content["annotations"].pop(0))
    record, left_out = read("vqav2", paths)
    assert record.content["question_id"] == 7 and left_out == LeftOut("questions without answers")
    paths = FILES["coco"](tmp_path)
    changed(paths, lambda content: content["images"].pop(0))
    record, left_out = read("coco", paths)
    assert record.content["image_id"] == "coco_6"
    assert left_out == LeftOut("captions of pictures that the file does not list", 2)
    lists = {"train": ["1.jpg ", "2"], "dev": ["3.jpg"]}
    *records, left_out = read("flickr8k", flickr_files(tmp_path, [("1.jpg", ["A."]), ("2.jpg", ["B."])], lists))
    assert [record.split for record in records] == ["train", "train"]
    assert left_out == LeftOut("pictures of the lists without a caption")
    asked = [genome_question(number, 1, "Who?", answer) for number, answer in enumerate(("A.", ".", "B."))]
    found = read("visual_genome", write(tmp_path, {"question_answers": [{"id": 1, "qas": asked}]}))
    assert [one.content["answer"] for one in found if isinstance(one, Record)] == ["a", "b"]
    assert found[1] == LeftOut("empty answers")
    for form in FILES:
        assert all(isinstance(one, Record) for one in read(form, FILES[form](tmp_path))), "of whole files nothing"


def test_questions_and_answers_belong_together(tmp_path):
    questions, annotations = FILES["vqav2"](tmp_path)
    with pytest.raises(UserError, match=f"{annotations}: give the questions too, v2_OpenEnded_mscoco_train2014_quest"):
        read("vqav2", [annotations])
    again = tmp_path / "again.json"
    again.write_text(questions.read_text())
    with pytest.raises(UserError, match=f"{again}: as {questions} it is about train2014; give one of them"):
        read("vqav2", [questions, annotations, again])
    again.write_text('{"data_subtype": "train2014", "pictures": []}')
    with pytest.raises(UserError, match=f"{again}: expected VQAv2's questions or annotations"):
        read("vqav2", [again])
    for change in (lambda given: given[1].update(question_id=9), lambda given: given.append(given[0])):
        paths = FILES["vqav2"](tmp_path)
        changed(paths, lambda content, change=change: change(content["annotations"]))
        with pytest.raises(UserError, match=rf"{paths[1]}, entry \d: question \d is not in {paths[0]}, or is twice"):
            read("vqav2", paths)


def test_test_dev_is_part_of_the_test_set(tmp_path):
    """Whose archive holds both."""
    part = vqa_files(tmp_path, "test-dev2015", ASKED[:1], answered=False)
    (record,) = read("test", part)
    assert record.split == "test" and record.pictures[0][0] == "test2015/COCO_test2015_000000000003.jpg"
    whole = FILES["test"](tmp_path)
    left_out = LeftOut("questions of test-dev2015, which are among those of test2015")
    assert read("test", part + whole) == [left_out, *read("test", whole)]
    assert read("test", whole + part) == [*read("test", whole), left_out]


@pytest.mark.parametrize(
    "form, text, complaint",
    [
        (
            "daquar",
            "what is in image3 ?\nlamp\nwhat is in image4 ?\n",
            ": 3 lines, which are not questions and answers",
        ),
        ("daquar", "what is in image3 ?\nlamp\nwhat is it ?\nlamp\n", ", line 3: names no picture: 'what is it [?]'"),
        (
            "flickr8k",
            "1.jpg#0\tA dog .\n2.jpg A dog .\n",
            ", line 2: expected NAME.jpg#0, a tab and a caption, found '2",
        ),
        ("flickr30k", "image| number| comment\n1.jpg| 0| A.\n2.jpg\n", r", line 3: expected NAME.jpg\| 0\| a caption"),
        ("flickr8k", b"1.jpg#0\t\xff\n", ": no text in UTF-8; name the file as it was downloaded, unpacked"),
    ],
)
def test_a_line_that_is_not_of_the_form_is_named(tmp_path, form, text, complaint):
    path = tmp_path / "train.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"^{path}{complaint}"):
        read(form, [path])


@pytest.mark.parametrize("form", ["karpathy", "coco", "visual_genome", "nlvr2"])
def test_what_is_no_text_was_not_unpacked(tmp_path, form):
    path = tmp_path / "train.json"
    path.write_bytes(gzip.compress(b"[]"))
    with pytest.raises(UserError, match=f"^{path}: no text in UTF-8; name the file as it was downloaded, unpacked"):
        read(form, [path], "train")


def test_what_is_no_file_says_why(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}: Is a directory; name the file"):
        read("daquar", [tmp_path], "train")


def test_lists_without_captions_are_nothing_to_convert(tmp_path):
    (tmp_path / "train.txt").write_text("1.jpg\n")
    with pytest.raises(UserError, match="^no captions among the files; name Flickr8k.token.txt"):
        read("flickr8k", [tmp_path / "train.txt"])


def test_spaces_and_marks_around_lines_are_no_part_of_them(tmp_path):
    path = tmp_path / "qa.894.raw.train.txt"
    path.write_text("  what is in image3 ?  \n lamp \n", encoding="utf-8-sig")  # with a byte order mark
    (record,) = read("daquar", [path])
    assert record.content == {"question_id": 1, "question": "what is?", "answer": ["lamp"]}
    (tmp_path / "val.txt").write_text(" image3.png \n")
    assert Draw({"val": str(tmp_path / "val.txt")})(record) == "val"


def test_where_a_split_stands():
    assert Source(Path("train.json"), "val").own_split() == "val", "who names one is believed"
    assert [split_in(name) for name in ("Train2014", "f.devImages", "valid", "train_val", "x")] == [
        "train", "val", "val", "", ""
    ]  # fmt: skip


@pytest.mark.parametrize("shares", [{"val": "0"}, {"val": "-0.1"}, {"val": "1"}, {"val": "0.5", "test": "0.5"}])
def test_shares_leave_something_to_train_on(shares):
    with pytest.raises(UserError, match="expected parts of the training pictures, together below 1"):
        Draw(shares)


def test_where_cocos_pictures_are(tmp_path):
    """By their own names or, since 2017, by that of the annotations."""
    assert coco_folders("COCO_val2014_000000000001.jpg", Path("mine.json")) == ["val2014"]
    assert coco_folders("000000000001.jpg", Path("captions_val2017.json")) == ["val2017"]
    assert coco_folders("000000000001.jpg", Path("mine.json")) == []
    paths = FILES["karpathy"](tmp_path)
    whole = read("karpathy", paths)
    changed(paths, lambda content: content.pop("dataset"))
    assert read("karpathy", paths) == whole, "it is COCO's where it does not say"
