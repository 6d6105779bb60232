"""The list of answers: whose answers count, how often, and what becomes of the file."""

import json
import re

import pytest

from madtp.__main__ import main
from madtp.scoring.answers import frequent_answers
from madtp.scoring.vqa_accuracy import normalise
from tests.miniature import make_data, write_config


def test_what_most_people_say_in_the_form_that_is_compared():
    questions = [["Two", "2", "three"], ["2", "3", "3"], ["a dog", "The dog!", "cat"], ["the", "?", "cat"]]
    assert frequent_answers(questions, least=1) == ["2", "3", "dog"]
    assert frequent_answers([["y"], ["x"], ["y"], ["x"], ["z"]], least=2) == ["x", "y"]
    assert frequent_answers([["red"]] * 9 + [["blue"]] * 8, least=9) == ["red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    make_data(folder)
    write_config(folder, folder / "vqa.yaml", "vqa", train_files=["vqa_train.json", "vg_qa"])
    return folder


def test_the_command_counts_training_questions(folder, capsys):
    out = folder / "lists" / "answers.json"
    assert main(["answers", "--config", str(folder / "vqa.yaml"), "--out", str(out), "--least", "2"]) == 0
    listed = json.loads(out.read_text())
    asked = json.loads((folder / "annotation/vqa_train.json").read_text())
    said = [max(entry["answer"], key=entry["answer"].count) for entry in asked]  # nine of ten agree
    assert set(listed) == {normalise(answer) for answer in said if said.count(answer) >= 2}
    assert re.match(rf"{len(listed)} answers, each to 2 of {len(asked)} questions or more: ", capsys.readouterr().out)


@pytest.mark.parametrize(
    "flags, error",
    [
        ([], "answer_list.json is there already; remove it or name another with --out"),
        (["--out", "new.json", "--least", "1000"], "is that of 1000 of them; lower --least"),
        (["--out", "new.json", "--least", "0"], "--least is 0, expected at least 1"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_mistakes_are_one_line(folder, monkeypatch, capsys, flags, error):
    monkeypatch.chdir(folder)
    assert main(["answers", "--config", "vqa.yaml", *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and error in said and said.count("\n") == 1
    assert not (folder / "new.json").exists()
