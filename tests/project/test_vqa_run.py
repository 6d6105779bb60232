"""The VQA script from start to end on a miniature of its data: what the server gets, and what is scored here."""

import json

import pytest

from compress_vqa_dtp import VQA
from madtp.run.engine import main
from madtp.scoring.vqa_accuracy import vqa_accuracy
from tests.miniature import make_data, write_config
from tests.run.test_distributed import common, read


@pytest.mark.parametrize("inference", ["rank", "generate"])
def test_results_for_the_server_and_accuracy_where_answers_are_known(tmp_path, inference):
    make_data(tmp_path)
    if inference == "generate":
        (tmp_path / "annotation" / "answer_list.json").unlink()  # nobody needs it
    config = write_config(tmp_path, tmp_path / "vqa.yaml", "vqa", max_epoch=1, k_test=4)
    flags = [*common(config, tmp_path / "out"), "--p", "0", "--set", f"inference={inference}"]
    assert main(VQA(), flags) == 0
    (trained,) = read(tmp_path / "out" / "log.txt")
    assert main(VQA(), [*flags, "--evaluate", "--pretrained", str(tmp_path / "out" / "checkpoint_best.pth")]) == 0
    evaluated = json.loads((tmp_path / "out" / "evaluate.txt").read_text())

    def answers(name, split):
        results = json.loads((tmp_path / "out" / "result" / f"{name}.json").read_text())
        asked = json.loads((tmp_path / "annotation" / f"vqa_{split}.json").read_text())
        assert [result["question_id"] for result in results] == [entry["question_id"] for entry in asked]
        assert all(result.keys() == {"question_id", "answer"} for result in results)
        return [result["answer"] for result in results], [entry.get("answer") for entry in asked]

    accuracy = vqa_accuracy(*answers("vqa_val", "val"))["accuracy"]
    assert evaluated["val_accuracy"] == trained["val_accuracy"] == accuracy
    said, known = answers("vqa_result", "test")
    assert set(known) == {None} and "test_accuracy" not in evaluated
    if inference == "rank":
        assert set(said) <= set(json.loads((tmp_path / "annotation" / "answer_list.json").read_text()))
