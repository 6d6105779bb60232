"""What people's own data sets are like: repeated names and captions, other spellings, answers that are missing."""

import gzip
import json
import re
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from data import create_dataset, create_loader
from data.caption_dataset import image_ids
from data.files import BadImage, leaves_folder, on_disk, read_entries, read_image, wrong_field
from utils import UserError

CONFIG = {"image_size": 16, "prompt": "a ", "dataset": "flickr", "inference": "generate", "train_files": ["vqa_train"]}


@pytest.fixture
def own(tmp_path):
    """Makes the three data sets of a task from entries by file name, with the pictures that they name."""

    def own(task, files, pictures=None):
        named = [entry["image"] for entries in files.values() for entry in entries]
        for name in named if pictures is None else pictures:
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
        for name, entries in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(entries))
        roots = dict.fromkeys(("image_root", "vqa_root", "vg_root"), str(tmp_path / "images"))
        return create_dataset(task, CONFIG | roots | {"ann_root": str(tmp_path), "coco_gt_root": str(tmp_path)})

    return own


# Names.


@pytest.mark.parametrize(
    "names, ids",
    [
        (["val2014/COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"], [42, 7]),
        (["cat-1.jpg", "dog-1.jpg"], ["cat-1.jpg", "dog-1.jpg"]),
        (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
        (["cat-1.jpg", "dog.jpg"], ["cat-1.jpg", "dog.jpg"]),
        (["1.jpg", "1.jpg", "2.jpg"], [1, 1, 2]),
        (["1000268_693b08cb0e.jpg", "1001773_577c3a7d70.jpg"], ["1000268_693b08cb0e.jpg", "1001773_577c3a7d70.jpg"]),
    ],
)  # fmt: skip
def test_images_are_told_apart_by_their_numbers_or_else_by_their_names(names, ids):
    assert image_ids(names) == ids


def test_captions_of_names_that_end_in_one_number_stay_apart(own):
    entries = [{"image": f"{name}-1.jpg", "caption": [f"A {name}."]} for name in ("cat", "dog")]
    train = [{"image": "cat-1.jpg", "caption": "A cat."}]
    _, val, _ = own(
        "caption", {"coco_karpathy_train": train, "coco_karpathy_val": entries, "coco_karpathy_test": entries}
    )
    (batch,) = create_loader(val, 2, False)
    assert batch["image_id"] == ["cat-1.jpg", "dog-1.jpg"] and val.references == [["A cat."], ["A dog."]]


def test_the_truth_of_names_is_found_by_them(own, tmp_path):
    """A ground truth may file captions by whole names, as results then are, in another order than the images'."""
    names = ["dog-1.jpg", "cat-1.jpg"]
    truth = {"annotations": [{"image_id": name, "caption": f"It is {name}."} for name in sorted(names)]}
    for split in ("val", "test"):
        (tmp_path / f"coco_karpathy_{split}_gt.json").write_text(json.dumps(truth))
    entries = [{"image": name, "caption": ["?"]} for name in names]
    files = {"coco_karpathy_train": [{"image": names[0], "caption": "."}]}
    _, val, _ = own("caption", files | {"coco_karpathy_val": entries, "coco_karpathy_test": entries})
    assert val.references == [[f"It is {name}."] for name in names]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_images_are_found_under_another_spelling(own, form, caplog):
    given, there = "ordner\\caf\u00e9 1.jpg", unicodedata.normalize(form, "ordner/caf\u00e9 1.jpg")
    entries = [{"image": given, "caption": ["A cup."]}]
    files = {"coco_karpathy_train": [{"image": given, "caption": "A cup."}]}
    with caplog.at_level("INFO"):
        train, val, _ = own("caption", files | {"coco_karpathy_val": entries, "coco_karpathy_test": entries}, [there])
    assert train[0]["image"].shape == val[0]["image"].shape == (3, 16, 16)
    assert "1 of 1 images are spelled otherwise on the disk, like" in caplog.text


def test_a_name_that_is_there_as_it_is_given_stays(tmp_path):
    for name in ("a\\b.jpg", "caf\u00e9.jpg", "cafe\u0301.jpg"):
        (tmp_path / name).touch()
        assert on_disk(tmp_path, name) == name
    assert on_disk(tmp_path, "no\\where.jpg") == "no\\where.jpg"


ROOTS = ["/export/share/vision/{}", "C:\\Users\\me\\{}", "http://images.org/2014/{}", "//server/share/{}", "file:///{}"]


@pytest.mark.parametrize("root", ROOTS)
def test_of_a_path_from_a_root_the_end_counts_that_is_here(own, root, caplog):
    """As annotations have it that others wrote for their machine, or one wrote with whole paths."""
    given = root.format("train\\1.jpg" if "\\" in root else "train/1.jpg")
    entries = [{"image": given, "caption": ["A cup."]}]
    files = {f"coco_karpathy_{split}": entries for split in ("val", "test")}
    files["coco_karpathy_train"] = [{"image": given, "caption": "A cup."}]
    with caplog.at_level("INFO"):
        train, val, _ = own("caption", files, ["train/1.jpg", "1.jpg"])
    assert train[0]["image"].shape == val[0]["image"].shape == (3, 16, 16)
    assert f"1 of 1 images are spelled otherwise on the disk, like {given!r}: 'train/1.jpg'" in caplog.text


def test_a_path_from_a_root_stays_in_the_folder(tmp_path):
    inside, outside = tmp_path / "images", tmp_path / "secret.jpg"
    (inside / "sub").mkdir(parents=True)
    for path in (outside, inside / "sub" / "1.jpg"):
        Image.new("RGB", (8, 8)).save(path)
    assert on_disk(inside, str(inside / "sub" / "1.jpg")) == "sub/1.jpg"
    assert on_disk(inside, str(outside)) == str(outside)[1:]
    with pytest.raises(BadImage, match=re.escape(f"{inside}{outside}: no such image (here); complete the images or")):
        read_image(inside, on_disk(inside, str(outside)), "here")
    with pytest.raises(UserError, match="lies outside"):
        read_image(inside, str(outside), "here")


def test_a_name_in_other_letters_is_named(tmp_path):
    (tmp_path / "IMG_1.JPG").touch()
    for name, found in (("img_1.jpg", "no such image, but IMG_1.JPG is there"), ("img_2.jpg", "no such image (here)")):
        with pytest.raises(BadImage, match=re.escape(found)):
            read_image(tmp_path, name, "here")


@pytest.mark.parametrize("name", ["..\\x.png", "a\\..\\..\\x.png", "a/..\\../x.png"])
def test_backslashes_lead_out_of_no_folder(name):
    assert leaves_folder(name)


# Retrieval.


def test_one_file_is_one_image_in_training_whatever_its_number(own):
    train = [{"image": f"{name}.jpg", "caption": "x", "image_id": one} for name, one in (("a", 1), ("a", 2), ("b", 3))]
    several = [{"image": "a.jpg", "caption": ["x"]}]
    train, *_ = own("retrieval", {"flickr30k_train": train, "flickr30k_val": several, "flickr30k_test": several})
    assert [train[index]["idx"].item() for index in range(3)] == [0, 0, 1]


def test_without_numbers_the_file_tells_images_apart(own):
    train = [{"image": f"{name}.jpg", "caption": "x"} for name in "aba"]
    several = [{"image": "a.jpg", "caption": ["x"]}]
    files = {"flickr30k_train": train, "flickr30k_val": several, "flickr30k_test": several}
    train, *_ = own("retrieval", files)
    assert [train[index]["idx"].item() for index in range(3)] == [0, 1, 0]
    files["flickr30k_train"] = [{"image": "a.jpg", "caption": "x", "image_id": None}]
    with pytest.raises(UserError, match="entry 0: 'image_id' should be a string or a number"):
        own("retrieval", files)


def retrieval(own, names):
    entries = [{"image": name, "caption": ["A dog!", f"Number {n}"]} for n, name in enumerate(names)]
    train = [{"image": names[0], "caption": "x", "image_id": 1}]
    return own("retrieval", {"flickr30k_train": train, "flickr30k_val": entries, "flickr30k_test": entries})[1]


def test_same_images_and_same_texts_are_known(own):
    val = retrieval(own, ["a.jpg", "a.jpg", "b.jpg"])
    assert val.same_images == [0, 0, 1] and val.same_texts == [0, 1, 0, 2, 0, 3]


def test_published_sets_count_as_they_were_published(own):
    val = retrieval(own, [f"val2014/COCO_val2014_{n:012d}.jpg" for n in range(3)])
    assert val.same_images == [0, 1, 2] and val.same_texts == list(range(6))
    mixed = retrieval(own, ["val2014/COCO_val2014_000000000001.jpg", "own.jpg"])  # which nobody published
    assert mixed.same_texts == [0, 1, 0, 2]


# Questions.


def test_validation_needs_every_answer(own):
    asked = {"question_id": 1, "question": "?", "image": "a.jpg", "dataset": "vqa"}
    answered = {**asked, "answer": ["yes"]}
    files = {"vqa_train": [answered], "vqa_val": [answered, asked], "vqa_test": [asked]}
    with pytest.raises(UserError, match=r"vqa_val\.json, entry 1: no 'answer', and without it no checkpoint"):
        own("vqa", files)
    files["vqa_val"] = [answered]
    assert [len(dataset) for dataset in own("vqa", files)] == [1, 1, 1]


def test_one_s_own_questions_need_not_say_their_data_set(own):
    asked = {"question_id": 1, "question": "?", "image": "a.jpg", "answer": ["yes"]}
    train, *_ = own("vqa", {"vqa_train": [asked], "vqa_val": [asked], "vqa_test": [asked]})
    assert (train[0]["answers"], train[0]["weights"]) == (["yes"], [1.0])
    with pytest.raises(UserError, match="'dataset' should be one of .*'vqa', 'vg'.*, not 'gqa'"):
        own("vqa", {"vqa_train": [asked | {"dataset": "gqa"}], "vqa_val": [asked], "vqa_test": [asked]})


# Annotation files of another form.


@pytest.mark.parametrize(
    "content, way_out",
    [
        (
            '{"identifier": "dev-1-0-0", "label": "True"}\n{"identifier": "dev-1-0-1", "label": "True"}\n',
            "convert nlvr2",
        ),
        ('[{"id": 1, "qas": []}]', "convert visual_genome"),
        ('{"info": {}, "data_subtype": "val2014", "questions": [1]}', "convert vqav2"),
        ('{"images": [{"sentids": [1], "split": "val"}]}', "convert karpathy"),
        ('{"info": {}, "images": [{"license": 1, "file_name": "a.jpg"}]}', "convert coco"),
        ('{"image": "a.jpg"}\n{"image": "b.jpg"}\n', "these are JSON lines, make a list of them: [ENTRY, ENTRY, ...]"),
        ('{"image": "a.jpg"}', "docs/own_data.md shows its form"),
        ("", "nothing in it; correct it"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS: run `git lfs pull`"),
        (
            '[{"sentence": "caf\u00e9"}]'.encode("latin-1"),
            "no text in UTF-8 (byte 18 is of another encoding), save it as such",
        ),
        (gzip.compress(b"[1]", mtime=0), "it is packed, unpack it"),
        (None, "put it there, set ann_root, or make it of the published files: python -m madtp convert"),
    ],
)
def test_the_way_out_fits_what_the_file_is(tmp_path, content, way_out):
    if content is not None:
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "nlvr_train.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        create_dataset("nlvr", CONFIG | {"ann_root": str(tmp_path), "image_root": str(tmp_path)})
    assert str(error.value).startswith(f"{tmp_path}/nlvr_train.json") and way_out in str(error.value)
    assert (Path.cwd() / "docs/own_data.md").exists()


@pytest.mark.parametrize(
    "value, kind, fault",
    [
        ([], list, "is an empty list"),
        ("\ud800 x", str, "has half a character in it"),
        ("x", list, "should be a list of strings"),
        ([1], (list, str), "should be a list of strings or a string"),
        ([], str, "should be a string"),
        (None, (int, str), "should be a number or a string"),
    ],
)
def test_what_is_wrong_with_a_field(value, kind, fault):
    assert wrong_field({"caption": value}, {"caption": kind}).startswith(f"'caption' {fault}, the entry is ")


def test_a_file_without_entries_is_called_empty(tmp_path):
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(UserError, match="train.json: expected a list of entries, found an empty one"):
        read_entries(tmp_path / "train.json")
