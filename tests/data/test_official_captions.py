"""Captions in the files in which others published them: what becomes of them, and that it is what the tasks read."""

import re

import pytest

from data import create_dataset
from data.official.captions import flickr_captions, read_flickr30k
from data.official.records import Source
from madtp.method.errors import UserError
from tests.data.official_files import SIDE, coco_file, flickr_files, karpathy_file, paint

SAID = [
    ("COCO_val2014_000000391895.jpg", "test", ["A man with a red helmet. ", "Man riding.", " "]),
    ("COCO_val2014_000000060623.jpg", "restval", ["A young girl.", 'A girl "inhales".']),
    ("COCO_train2014_000000483108.jpg", "train", ["A man on a bicycle."]),
    ("COCO_val2014_000000184613.jpg", "val", ["A child holding a flowered umbrella.", "Ünïcode."]),
]


def test_karpathys_coco(tmp_path, converted):
    files, said = converted("karpathy", karpathy_file(tmp_path, "coco", SAID))
    places = {name: f"{name.split('_')[1]}/{name}" for name, _, _ in SAID}
    assert files == {
        "coco_karpathy_test": [{"image": places[SAID[0][0]], "caption": SAID[0][2][:2]}],
        "coco_karpathy_train": [
            {"image": places[name], "caption": caption, "image_id": f"coco_{int(name[-10:-4])}"}
            for name, _, captions in SAID[1:3]
            for caption in captions
        ],
        "coco_karpathy_val": [{"image": places[SAID[3][0]], "caption": SAID[3][2]}],
    }
    assert "left out: 1 empty captions\n" in said
    images = tmp_path / "coco"
    paint(images, places.values())
    config = {"image_size": SIDE, "ann_root": tmp_path / "annotation", "image_root": images, "prompt": "a picture of "}
    config |= {"coco_gt_root": tmp_path, "dataset": "coco"}
    train, val, test = create_dataset("caption", config)
    assert (len(train), len(val), len(test)) == (3, 1, 1) and val[0]["image_id"] == 184613
    train, val, test = create_dataset("retrieval", config)
    assert [train[n]["idx"].item() for n in range(3)] == [0, 0, 1] and val.texts[1] == "ünïcode"


@pytest.mark.parametrize("dataset, folder", [("flickr30k", "flickr30k-images"), ("flickr8k", "Flicker8k_Dataset")])
def test_karpathys_flickr_sets(tmp_path, converted, dataset, folder):
    said = [("1000092795.jpg", "train", ["Two guys.", "Two men."]), ("10002456.jpg", "val", ["Several men."])]
    files, _ = converted("karpathy", karpathy_file(tmp_path, dataset, said))
    assert files == {
        "flickr30k_train": [
            {"image": f"{folder}/1000092795.jpg", "caption": caption, "image_id": f"{dataset}_0"}
            for caption in said[0][2]
        ],
        "flickr30k_val": [{"image": f"{folder}/10002456.jpg", "caption": ["Several men."]}],
    }
    (tmp_path / "annotation").rename(tmp_path / "before")
    files, printed = converted("karpathy", [tmp_path / f"dataset_{dataset}.json"], "--name", "coco_karpathy")
    assert files.keys() == {"coco_karpathy_train", "coco_karpathy_val"}
    assert re.search(r"still to come: \S+/coco_karpathy_test.json, or draw", printed)


def test_cocos_captions(tmp_path, converted):
    train = [(f"COCO_train2014_{n:012d}.jpg", n, [f"Caption {n}.", f"Another {n}."]) for n in (318556, 9, 116100)]
    files, said = converted(
        "coco", coco_file(tmp_path, "train2014", [*train, ("COCO_train2014_000000000001.jpg", 1, [])])
    )
    assert files["coco_karpathy_train"] == [
        {"image": f"train2014/{name}", "caption": caption, "image_id": f"coco_{one}"}
        for name, one, captions in train
        for caption in captions
    ]
    assert "left out: 1 pictures without a caption\n" in said
    val = [
        ("000000179765.jpg", 179765, ["A black Honda.", "A motorcycle."]),
        ("000000190236.jpg", 190236, ["An office."]),
    ]
    files, said = converted("coco", coco_file(tmp_path, "val2017", val))
    assert files["coco_karpathy_val"] == [
        {"image": f"val2017/{name}", "caption": captions} for name, _, captions in val
    ]


@pytest.mark.parametrize("there", ["val2014/COCO_val2014_000000391895.jpg", "train2017/000000391895.jpg"])
def test_cocos_pictures_of_2017_will_do(tmp_path, converted, there):
    """They are those of 2014, divided otherwise and without the beginning of their names."""
    paint(tmp_path / "images", [there])
    files = karpathy_file(tmp_path, "coco", [("COCO_val2014_000000391895.jpg", "test", ["A man ."])])
    written, said = converted("karpathy", files, "--images", tmp_path / "images")
    assert written["coco_karpathy_test"] == [{"image": there, "caption": ["A man ."]}]
    assert "all 1 pictures are in" in said


FLICKR = [
    ("1000268201_693b08cb0e.jpg", ["A child in a pink dress .", "A girl ."]),
    ("1001773457_577c3a7d70.jpg", ["A black dog ."]),
    ("1002674143_1b742ab4b8.jpg", ["Paint ."]),
    ("2258277193_586949ec62.jpg.1", ["In no list ."]),
]


def test_flickr8k(tmp_path, converted):
    lists = {split: [FLICKR[place][0]] for place, split in enumerate(("train", "dev", "test"))}
    files, said = converted("flickr8k", flickr_files(tmp_path, FLICKR, lists))
    assert [one["caption"] for one in files["flickr30k_train"]] == FLICKR[0][1]
    assert files["flickr30k_val"] == [{"image": f"Flicker8k_Dataset/{FLICKR[1][0]}", "caption": FLICKR[1][1]}]
    assert files["flickr30k_test"] == [{"image": f"Flicker8k_Dataset/{FLICKR[2][0]}", "caption": FLICKR[2][1]}]
    assert "left out: 1 captions of pictures that no list names\n" in said


def test_flickr8k_as_a_table_with_shares(tmp_path, converted):
    rows = [(f"{n}_{n:x}.jpg", f'A "{n}", said') for n in range(400)]
    table = "\n".join(f'{name},"{text.replace(chr(34), chr(34) * 2)}"' for name, text in rows for _ in range(2))
    (tmp_path / "captions.txt").write_text(f"image,caption\n{table}\n")
    files, _ = converted("flickr8k", [tmp_path / "captions.txt"], "--val", 0.2, "--test", 0.1)
    again = {name: {one["image"] for one in entries} for name, entries in files.items()}
    assert sum(map(len, again.values())) == 400, "no picture is in two splits"
    assert 60 < len(again["flickr30k_val"]) < 100 and 25 < len(again["flickr30k_test"]) < 55
    assert files["flickr30k_test"][0]["caption"] == [dict(rows)[files["flickr30k_test"][0]["image"].split("/")[-1]]] * 2


def test_a_caption_of_a_table_keeps_its_commas_without_quotes_too(tmp_path, converted):
    table = tmp_path / "captions.txt"
    table.write_text("image,caption\n1.jpg,A dog, running, barks .\n1.jpg, A dog .\n")
    files, _ = converted("flickr8k", [f"train={table}"])
    assert [one["caption"] for one in files["flickr30k_train"]] == ["A dog, running, barks .", "A dog ."]
    with pytest.raises(UserError, match=r"line 3: expected NAME.jpg,a caption, found '2.jpg'"):
        list(flickr_captions(table, ["image,caption", "1.jpg,A dog .", "2.jpg"]))


def test_a_table_of_another_head_is_no_list_of_pictures(tmp_path):
    table = tmp_path / "results.csv"
    table.write_text("image_name,comment_number,comment\n1.jpg,0,A dog .\n")
    with pytest.raises(UserError, match="begins with 'image_name,comment_number,comment', expected a table with the"):
        list(read_flickr30k([Source(table, "")]))


@pytest.mark.parametrize("form", ["token", "table"])
def test_flickr30k_s_own_files(tmp_path, converted, form):
    """Of its table one line lacks the second bar; lists of its splits have numbers for names."""
    said = {"1000092795": ["Two young guys .", "Two | men ."], "1000268201": ["A child .", "Climbing ."], "7": ["."]}
    rows = [(name, number, text) for name, texts in said.items() for number, text in enumerate(texts)]
    if form == "token":
        text = "\n".join(f"{name}.jpg#{number}\t{text}" for name, number, text in rows)
    else:
        lines = [f"{name}.jpg| {number}| {text}" for name, number, text in rows]
        lines[3] = "1000268201.jpg| 4   Climbing ."
        text = "\n".join(["image_name| comment_number| comment", *lines])
    files = [tmp_path / {"token": "results_20130124.token", "table": "results.csv"}[form]]
    files[0].write_text(text + "\r\n", newline="")
    for split, name in (("train", "1000092795"), ("val", "1000268201")):
        files.append(tmp_path / f"{split}.txt")
        files[-1].write_text(f"{name}\n")
    written, report = converted("flickr30k", files)
    assert [one["caption"] for one in written["flickr30k_train"]] == said["1000092795"]
    assert written["flickr30k_val"] == [{"image": "flickr30k-images/1000268201.jpg", "caption": said["1000268201"]}]
    assert "left out: 1 captions of pictures that no list names\n" in report
