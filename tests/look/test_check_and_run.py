"""What the check passes, trains and evaluates; what it does not pass, the run refuses as well."""

import json

import pytest
from PIL import Image

from madtp.__main__ import main
from madtp.look.scripts import task_named
from madtp.run.engine import main as run
from tests.miniature import BERT, make_data, write_config

TASKS = {
    "nlvr": {},
    "caption": {"num_beams": 1, "max_length": 10, "coco_gt_root": "nowhere", "metrics": ["Bleu", "CIDEr"]},
    "vqa": {"inference": "rank", "train_files": ["vqa_train"]},
    "retrieval": {"dataset": "flickr", "queue_size": 32},
}
ENDLESS = "1," * 40


def words(*texts):
    return [{"caption": text} for text in texts]


def tiny(images):
    """A dot, a line, and a moving picture."""
    Image.new("RGB", (1, 1)).save(images / "dot.png")
    Image.new("CMYK", (3000, 1)).save(images / "line.jpg")
    Image.new("L", (30, 30)).save(images / "moving.gif", save_all=True, append_images=[Image.new("L", (30, 30), 3)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check_and_run")
    make_data(folder)
    tiny(folder / "images")
    return folder


# The task, what the first entries of a file are replaced by, other keys, and whether it runs.
CASES = {
    "one image": ("retrieval", "flickr30k_train", words(*"abcdefghij"), {}, True),
    "captions without words": ("retrieval", "flickr30k_val", [{"caption": ["."]}] * 45, {"k_test": 2}, True),
    "references without words": ("caption", "coco_karpathy_val", [{"caption": ["", "!"]}] * 46, {}, True),
    "one answer, empty": ("vqa", "vqa_val", [{"answer": [""]}] * 20, {}, True),
    "ids that are words": ("vqa", "vqa_val", [{"question_id": f"q{n}"} for n in range(20)], {}, True),
    "odd pictures": (
        "nlvr",
        "nlvr_train",
        [{"images": ["dot.png", "line.jpg"]}, {"images": ["moving.gif"] * 2}],
        {},
        True,
    ),
    "no answer": ("vqa", "vqa_val", [{"answer": None}], {}, False),
    "an endless answer": ("vqa", "vqa_train", [{"answer": [ENDLESS]}], {}, False),
    "an endless answer to rank": ("vqa", "answer_list", ["yes", ENDLESS], {}, False),
    "an endless statement": ("nlvr", "nlvr_test", [{"sentence": ENDLESS}], {}, False),
    "captions to be too long": ("caption", "coco_karpathy_val", [], {"max_length": 70}, False),
    "a prompt that leaves no room": ("caption", "coco_karpathy_val", [], {"max_length": 2, "min_length": 0}, False),
    "few positions": ("retrieval", "flickr30k_val", [], {"med_config": BERT | {"max_position_embeddings": 20}}, False),
}


@pytest.mark.parametrize("task, file, changes, keys, passes", CASES.values(), ids=CASES)
def test_a_run_does_what_the_check_says(task, file, changes, keys, passes, data, tmp_path, capsys):
    annotation = tmp_path / "annotation"
    annotation.mkdir()
    for path in (data / "annotation").glob("*.json"):
        (annotation / path.name).write_bytes(path.read_bytes())
    entries = json.loads((annotation / f"{file}.json").read_text())
    if file == "answer_list":
        changed = changes
    else:
        changed = [{**(entries[0] if file.endswith("train") and task == "retrieval" else entry), **change}
                   for entry, change in zip(entries, changes, strict=False)]  # fmt: skip
    rest = [] if task == "retrieval" and changes else entries[len(changed) :]
    (annotation / f"{file}.json").write_text(json.dumps(changed + rest))
    short = {"ann_root": str(annotation), "epoch_steps": 2, "max_epoch": 1, "calibration_batches": 1}
    config = write_config(data, tmp_path / "config.yaml", task, **TASKS[task] | short | keys)

    assert main(["check", "--config", str(config), "--num_workers", "2"]) == (0 if passes else 1)
    said = capsys.readouterr().out
    assert said.rstrip().endswith("training has all that it needs" if passes else "training would fail")
    flags = ["--config", config, "--output_dir", tmp_path / "out", "--num_workers", 0, "--p", 0, "--device", "cpu"]
    assert run(task_named(task), list(map(str, flags))) == (0 if passes else 2)
    error = capsys.readouterr().err
    assert error == "" if passes else error.removeprefix("error: ").partition(";")[0] in said
