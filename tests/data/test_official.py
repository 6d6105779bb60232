"""Official files, small ones in exactly their forms: what becomes of them, and that it is what the tasks read."""

import json

import pytest

from data import create_dataset
from data.forms import form_of
from data.official import FORMS
from data.official.questions import DAQUAR_PICTURE
from madtp.__main__ import main
from madtp.look import command_line
from tests.data.official_files import (
    SIDE,
    coco_file,
    genome_question,
    karpathy_file,
    nlvr2_file,
    paint,
    vizwiz_question,
    vqa_files,
    write,
)

# Round trips: what is written is what was said, and the tasks read it.

ASKED = [
    (262148000, 262148, "Where is he looking?", ["down"] * 7 + ["at table", "down", "skateboard"]),
    (262148001, 262148, "What are the people doing?", ["spectating"] * 10),
    (393225000, 393225, 'Is this a "creamy" soup?', ["yes"] * 4 + ["no"] * 6),
]


def test_vqav2(tmp_path, converted):
    train = vqa_files(tmp_path, "train2014", ASKED)
    val = vqa_files(tmp_path, "val2014", ASKED[:2])
    test = vqa_files(tmp_path, "test2015", ASKED, answered=False)
    images = tmp_path / "coco"
    files, said = converted("vqav2", [*val, *test, *train[::-1]])
    for split, subset, asked in (
        ("train", "train2014", ASKED),
        ("val", "val2014", ASKED[:2]),
        ("test", "test2015", ASKED),
    ):
        expected = [
            {
                "question_id": one,
                "question": question,
                **({} if split == "test" else {"answer": answers}),
                "image": f"{subset}/COCO_{subset}_{image:012d}.jpg",
                "dataset": "vqa",
            }
            for one, image, question, answers in (asked if split == "test" else reversed(asked))
        ]
        assert files[f"vqa_{split}"] == expected
        paint(images, [entry["image"] for entry in expected])
    assert "vqa_train.json: 3 entries, 2 pictures like train2014/COCO_train2014_000000393225.jpg\n" in said
    config = {"image_size": SIDE, "ann_root": tmp_path / "annotation", "vqa_root": images, "vg_root": images}
    config |= {"train_files": ["vqa_train"], "inference": "generate"}
    train, val, test = create_dataset("vqa", config)
    assert train.collate([train[0]])["answer"] == ["yes", "no"] and val[0]["answers"] == ["spectating"] * 10
    assert test[1]["answers"] is None and test[1]["question"] == "what are the people doing?"


def test_visual_genome(tmp_path, converted):
    content = [
        {
            "id": 1,
            "qas": [
                genome_question(986768, 1, "What color is the clock?", "Green."),
                genome_question(5, 1, "When?", " . "),
            ],
        },
        {"id": 2, "qas": [genome_question(6, 2, "Who is it?", "The U.S. team.")]},
        {"id": 3, "qas": []},
    ]
    paint(tmp_path / "vg", ["VG_100K/1.jpg", "VG_100K_2/2.jpg"])
    files, said = converted(
        "visual_genome", write(tmp_path, {"question_answers": content}), "--images", tmp_path / "vg"
    )
    assert files == {
        "vg_qa": [
            {
                "question_id": 986768,
                "question": "What color is the clock?",
                "answer": "green",
                "image": "VG_100K/1.jpg",
                "dataset": "vg",
            },
            {
                "question_id": 6,
                "question": "Who is it?",
                "answer": "the u.s. team",
                "image": "VG_100K_2/2.jpg",
                "dataset": "vg",
            },
        ]
    }
    assert "left out: 1 empty answers\n" in said and "all 2 pictures are in " in said


def test_vizwiz(tmp_path, converted):
    asked = {
        split: [vizwiz_question(split, n, f"What is {n}?", answers and [*answers, f"{n}"]) for n in range(2)]
        for split, answers in (("train", ["basil"] * 9), ("val", ["soap"] * 9), ("test", None))
    }
    paint(tmp_path / "images", [f"{split}/{one['image']}" for split, entries in asked.items() for one in entries])
    files, said = converted("vizwiz", write(tmp_path, asked), "--images", tmp_path / "images")
    assert files["vqa_val"][1] == {
        "question_id": "VizWiz_val_00000001.jpg", "question": "What is 1?", "answer": ["soap"] * 9 + ["1"],
        "image": "val/VizWiz_val_00000001.jpg", "dataset": "vqa",
    }  # fmt: skip
    assert "answer" not in files["vqa_test"][0] and "all 6 pictures are in" in said
    config = {"vqa_root": str(tmp_path / "images"), "ann_root": str(tmp_path / "annotation"), "image_size": SIDE}
    config |= {"train_files": ["vqa_train"], "inference": "generate", "min_scale": 0.5, "augment": False}
    assert [len(dataset) for dataset in create_dataset("vqa", config)] == [2, 2, 2]


def test_daquar(tmp_path, converted):
    lines = [
        "what is on the right side of the black telephone and on the left side of the red chair in the image3 ?",
        "desk",
        "what is the object in the image912 close to the wall ?", "garbage_bin, table",
        "how many pillows are there in image12 ?", "2",
    ]  # fmt: skip
    for split in ("train", "test"):
        (tmp_path / f"qa.894.raw.{split}.txt").write_text("\n".join(lines if split == "train" else lines[4:]) + "\n")
    paint(tmp_path / "daquar", ["image3.png", "nyu_depth_images/image912.png", "image12.jpg"])
    (tmp_path / "numbers.txt").write_text("912\n4\n")
    sources = [tmp_path / f"qa.894.raw.{split}.txt" for split in ("train", "test")]
    files, said = converted("daquar", sources, "--val", tmp_path / "numbers.txt", "--images", tmp_path / "daquar")
    shown = {name: [(one["question"], one["answer"], one["image"]) for one in some] for name, some in files.items()}
    telephone = "what is on the right side of the black telephone and on the left side of the red chair?"
    pillows = ("how many pillows are there?", ["2"], "image12.jpg")
    assert shown == {
        "vqa_train": [(telephone, ["desk"], "image3.png"), pillows],
        "vqa_val": [
            (
                "what is the object in the image close to the wall?",
                ["garbage bin, table"],
                "nyu_depth_images/image912.png",
            )
        ],
        "vqa_test": [pillows],
    }
    assert len({one["question_id"] for some in files.values() for one in some}) == 4
    assert "numbers.txt: 1 of its pictures are none of these, one is 4\n" in said


@pytest.mark.parametrize("other", ["image3.png", "3", "image3"])
def test_a_picture_that_two_lists_name_is_refused(tmp_path, capsys, other):
    (tmp_path / "qa.894.raw.train.txt").write_text("what is on the table in the image3 ?\nlamp\n")
    (tmp_path / "val.txt").write_text("image3\n9\n")
    (tmp_path / "test.txt").write_text(f"{other}\n9\n")
    lists = ["--val", str(tmp_path / "val.txt"), "--test", str(tmp_path / "test.txt")]
    command = ["convert", "daquar", str(tmp_path / "qa.894.raw.train.txt"), *lists, "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert capsys.readouterr().err == ("error: image3.png is in the lists for val and test; a picture has one split\n")


@pytest.mark.parametrize("end", ["in the image3 ?", "in image3 ?", " of this image3?", "on the image 3 ?"])
def test_daquar_names_its_pictures_in_several_ways(end):
    assert DAQUAR_PICTURE.sub("", f"what is it {end}") == "what is it?"


STATEMENTS = [
    ("train-10171-0-0", 39, "An image shows one leather pencil case.", "False"),
    ("train-10171-0-1", 39, "There are two cases.", "True"),
    ("dev-850-0-0", None, "There is an empty glass.", "False"),
    ("test1-769-1-0", None, "All dogs are corgis.", "True"),
]


def test_nlvr2(tmp_path, converted):
    sources = [*nlvr2_file(tmp_path, "train", STATEMENTS[:2]), *nlvr2_file(tmp_path, "dev", STATEMENTS[2:3])]
    files, _ = converted("nlvr2", [*sources, *nlvr2_file(tmp_path, "test1", STATEMENTS[3:])])
    places = ["images/train/39/train-10171-0", "images/train/39/train-10171-0", "dev/dev-850-0", "test1/test1-769-1"]
    entries = [
        {"images": [f"{place}-img0.png", f"{place}-img1.png"], "sentence": sentence, "label": label}
        for place, (_, _, sentence, label) in zip(places, STATEMENTS, strict=True)
    ]
    assert files == {"nlvr_train": entries[:2], "nlvr_dev": entries[2:3], "nlvr_test": entries[3:]}
    images = tmp_path / "NLVR2"
    paint(images, {name for entry in entries for name in entry["images"]})
    config = {"image_size": SIDE, "ann_root": tmp_path / "annotation", "image_root": images}
    train, _, test = create_dataset("nlvr", config)
    assert train[1]["target"] == 1 and test[0]["text"] == "all dogs are corgis"


# What is not there.


def test_pictures_that_are_not_there_are_listed_or_left_out(tmp_path, converted):
    source = nlvr2_file(tmp_path, "dev", [(f"dev-{n}-0-0", None, "A dog.", "True") for n in range(20)])
    paint(tmp_path / "images", [f"dev/dev-{n}-0-img{side}.png" for n in range(4) for side in (0, 1)])
    files, said = converted("nlvr2", source, "--images", tmp_path / "images")
    assert len(files["nlvr_dev"]) == 20 and "32 of 40 pictures, all named in" in said and said.count("\n  dev/") == 10
    assert "nlvr_train.json\n" in said and "nlvr_test.json, or draw its pictures with --val and --test\n" in said
    listed = (tmp_path / "annotation/missing_nlvr2.txt").read_text().split()
    assert listed == [f"dev/dev-{n}-0-img{side}.png" for n in range(4, 20) for side in (0, 1)]
    (tmp_path / "annotation/nlvr_dev.json").unlink()
    files, said = converted("nlvr2", source, "--images", tmp_path / "images", "--drop_missing")
    assert len(files["nlvr_dev"]) == 4 and "left out: 16 entries whose pictures are missing\n" in said


@pytest.mark.parametrize(
    "form, content, complaint",
    [
        ("vqav2", {"questions": []}, "expected VQAv2's questions or annotations with their 'data_subtype'"),
        ("vqav2", {"data_subtype": "train2014", "questions": []}, "give the answers too, v2_mscoco_train2014_annot"),
        ("vqav2", {"data_subtype": "mine", "questions": []}, "mine tells no split; say it: train=x.json"),
        ("vqav2", [{"question": "?"}], "expected an object, found a list; is it a file of this form?"),
        ("visual_genome", {"qas": []}, "expected a list"),
        ("flickr30k", "what?", "its name tells no split"),
        ("visual_genome", [{"qas": [{"question": "?"}]}], "entry 0: 'qa_id' should be a number"),
        ("karpathy", {"annotations": []}, "no list 'images' in it"),
        (
            "karpathy",
            {"images": [{"filename": "a", "split": "dev", "sentences": []}]},
            "entry 0: split 'dev', not one of",
        ),
        ("coco", {"annotations": [], "images": []}, "its name tells no split; say it: train=x.json"),
        ("nlvr2", {"identifier": "dev-1-0-0", "sentence": "A.", "label": "maybe"}, "'label' should be True or False"),
        ("nlvr2", {"identifier": "1-0-0", "sentence": "A.", "label": "True"}, "1-0 tells no split; say it"),
        ("nlvr2", {"identifier": "dev-1-0-0", "label": "True"}, "entry 0: 'sentence' should be a string"),
        ("nlvr2", [], "line 1: expected an object, found []"),
        ("daquar", "what?", "its name tells no split"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, capsys, form, content, complaint):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    assert main(["convert", form, str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}") and complaint in said and said.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_nothing_is_replaced_and_a_broken_file_leaves_nothing(tmp_path, capsys):
    source = nlvr2_file(tmp_path, "train", STATEMENTS)
    flags = ["nlvr2", str(source[0]), "--out", str(tmp_path / "out")]
    assert main(["convert", *flags]) == 0
    before = (tmp_path / "out/nlvr_dev.json").read_bytes()
    assert main(["convert", *flags]) == 2
    assert "is there already; remove it or name another folder with --out" in capsys.readouterr().err
    assert (tmp_path / "out/nlvr_dev.json").read_bytes() == before
    source[0].write_text(source[0].read_text() + "{")
    assert main(["convert", *flags[:-1], str(tmp_path / "other")]) == 2
    assert "train.json, line 5: not JSON" in capsys.readouterr().err and not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize(
    "flags, complaint",
    [
        (["karpathy", "val={}"], "say themselves what is for val"),
        (["nlvr2", "{}", "{}"], "dev.json is given twice; name every file once"),
        (["nlvr2", "{}.gz"], "no such file; give the files of nlvr2: train.json, dev.json, test1.json"),
        (["nlvr2", "{}", "--val", "1.5"], "expected parts of the training pictures, together below 1"),
        (["nlvr2", "{}", "--val", "nowhere.txt"], "--val nowhere.txt: expected a part of the training pictures"),
        (["nlvr2", "{}", "--images", "nowhere"], "--images: nowhere is not a folder"),
        (["nlvr2", "{}", "--drop_missing"], "--drop_missing needs to know where pictures should be: --images FOLDER"),
        (["nlvr2", "{}", "--name", "flickr30k"], "--name is for files with captions, and nlvr2 has none"),
        (["visual_genome", "{}", "--val", "0.1"], "all of visual_genome is for training; leave out --val and --test"),
    ],
)
def test_wrong_flags_are_one_line(tmp_path, capsys, flags, complaint):
    (path,) = nlvr2_file(tmp_path, "dev", STATEMENTS)
    assert main(["convert", *(flag.format(path) for flag in flags), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


@pytest.mark.parametrize("form, name", [("nlvr2", "train.json"), ("daquar", "qa.894.raw.train.txt")])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_among_others_is_no_file_to_come(tmp_path, capsys, form, name, content):
    """Passed over, it would be missed only when training begins."""
    whole = {
        "nlvr2": ("dev.json", '{"identifier": "dev-1-0-0", "sentence": "A.", "label": "True"}'),
        "daquar": ("qa.894.raw.test.txt", "what is in image3 ?\nlamp"),
    }
    other, filled = whole[form]
    (tmp_path / other).write_text(filled)
    (tmp_path / name).write_text(content)
    files = [str(tmp_path / one) for one in (other, name)]
    assert main(["convert", form, *files, "--out", str(tmp_path / "out")]) == 2
    assert f"error: {files[1]}: nothing in it; fetch the file again" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("identifier", ["7", "train-7"])
def test_an_identifier_that_names_no_pictures_is_refused(tmp_path, capsys, identifier):
    (path,) = nlvr2_file(tmp_path, "train", [(identifier, None, "Two dogs.", "True")])
    assert main(["convert", "nlvr2", str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"{path}, entry 0: 'identifier' should be like dev-850-0-0, it is '{identifier}'" in capsys.readouterr().err


def test_a_file_of_another_form_is_named(tmp_path, capsys):
    (path,) = nlvr2_file(tmp_path, "dev", STATEMENTS)
    assert main(["convert", "karpathy", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"error: {path} is a file of nlvr2, not of karpathy: python -m madtp convert nlvr2 ...\n"
    )


def test_files_tell_their_form(tmp_path):
    told = {
        "vqav2": vqa_files(tmp_path, "train2014", ASKED),
        "vizwiz": write(tmp_path, {"train": [vizwiz_question("train", 0, "What is it?", ["soap"])]}),
        "visual_genome": write(tmp_path, {"question_answers": [{"id": 1, "qas": []}]}),
        "karpathy": karpathy_file(tmp_path, "coco", [("COCO_val2014_000000000001.jpg", "val", ["A."])]),
        "coco": coco_file(tmp_path, "val2014", [("COCO_val2014_000000000001.jpg", 1, ["A."])]),
        "nlvr2": nlvr2_file(tmp_path, "dev", STATEMENTS),
    }
    for form, paths in told.items():
        assert form in FORMS and {form_of(path) for path in paths} == {form}
    (own,) = write(tmp_path, {"vqa_train": [{"question_id": 1, "question": "?", "image": "a", "dataset": "vqa"}]})
    assert form_of(own) == ""


def test_every_form_is_named_with_its_files():
    assert list(command_line.FORMS) == list(FORMS)
