"""Data sets: what a sample holds, which random numbers it depends on, and what a mistake in the files says."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import create_dataset, create_loader
from data.files import decode_image, read_image
from data.nlvr_dataset import NLVREvaluation, NLVRTrain, mirror
from data.vqa_dataset import weigh_answers
from transform.pictures import evaluation_transform
from utils import UserError

SIDE = 16


def write(folder, files: dict) -> None:
    for name, entries in files.items():
        (folder / f"{name}.json").write_text(json.dumps(entries))


@pytest.fixture
def config(tmp_path):
    """Eight pictures, and small files for every task."""
    images, annotation = tmp_path / "images", tmp_path / "annotation"
    (images / "sub").mkdir(parents=True)
    annotation.mkdir()
    rng = np.random.default_rng(0)
    names = [f"sub/COCO_val_{number:06d}.png" for number in range(8)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(images / name)

    pairs = [
        {"images": [names[n], names[-1 - n]], "sentence": f"The LEFT one ({n}) is right.", "label": str(n % 3 == 0)}
        for n in range(8)
    ]
    one_each = [
        {"image": name, "caption": f"Picture {n}!", "image_id": f"coco_{n // 2}"} for n, name in enumerate(names)
    ]
    several = [{"image": name, "caption": ["A." for _ in range(1 + n % 3)]} for n, name in enumerate(names)]
    asked = [
        {"question_id": n, "question": "What (color)?", "image": name, "dataset": "vqa"} for n, name in enumerate(names)
    ]
    answered = [{**entry, "answer": ["red"] * 7 + ["blue"] * 3} for entry in asked]
    genome = [{"question": "Why?", "answer": "because", "image": names[0], "dataset": "vg"}]
    write(annotation, {f"nlvr_{split}": pairs for split in ("train", "dev", "test")})
    for name in ("coco_karpathy", "flickr30k"):
        write(annotation, {f"{name}_train": one_each, f"{name}_val": several, f"{name}_test": several[:5]})
    write(annotation, {"vqa_train": answered, "vqa_val": answered, "vqa_test": asked, "vg_qa": genome})
    write(annotation, {"answer_list": ["red", "blue"]})
    roots = dict.fromkeys(("image_root", "vqa_root", "vg_root"), str(images))
    return {
        **roots,
        "ann_root": str(annotation),
        "train_files": ["vqa_train", "vg_qa"],
        "image_size": SIDE,
        "dataset": "coco",
        "prompt": "a picture of ",
        "coco_gt_root": str(tmp_path / "truth"),
        "inference": "rank",
        "augment": True,
    }


# Which random numbers.


def same(batches, others) -> bool:
    return len(batches) == len(others) and all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)
        for a, b in zip(batches, others, strict=True)
    )


@pytest.mark.parametrize("task", ["nlvr", "vqa"])
def test_augmentation_does_not_depend_on_workers(config, task):
    train, val, _ = create_dataset(task, config)
    for dataset, training in ((train, True), (val, False)):
        alone = create_loader(dataset, 2, training, seed=5)
        helped = create_loader(dataset, 2, training, seed=5, num_workers=2)
        for epoch in (0, 1):
            alone.batch_sampler.set_epoch(epoch)
            helped.batch_sampler.set_epoch(epoch)
            assert same(list(alone), list(helped))


def test_augmentation_does_not_depend_on_processes_or_resumption(config):
    train, _, _ = create_dataset("caption", config)

    def samples(batch_size: int, epoch: int, start: int = 0, **place) -> dict[int, torch.Tensor]:
        loader = create_loader(train, batch_size, True, seed=5, **place)
        loader.batch_sampler.set_epoch(epoch, start)
        return {int(i): image for batch in loader for i, image in zip(batch["index"], batch["image"], strict=True)}

    whole = samples(4, epoch=2)
    parts = samples(2, epoch=2, rank=0, world=2) | samples(2, epoch=2, rank=1, world=2)
    assert whole.keys() == parts.keys() and all(torch.equal(whole[i], parts[i]) for i in whole)
    resumed = samples(4, epoch=2, start=1)
    assert len(resumed) == 4 and all(torch.equal(whole[i], resumed[i]) for i in resumed)
    assert not any(torch.equal(image, whole[i]) for i, image in samples(4, epoch=3).items())


def test_loading_leaves_the_global_random_numbers_alone(config):
    train, _, _ = create_dataset("nlvr", config)
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(3), random.random()
    torch.manual_seed(0)
    random.seed(0)
    list(create_loader(train, 4, True, seed=9))
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]


def test_without_augment_training_samples_are_those_of_evaluation(config):
    train, dev, _ = create_dataset("nlvr", {**config, "augment": False})
    for index in list(range(8)) * 2:
        assert same([train[index]], [dev[index]])


# What a batch holds.


def test_nlvr_swaps_images_and_words_together(config):
    source = evaluation_transform(SIDE), [Path(config["ann_root"]) / "nlvr_dev.json"], config
    straight, swapping = NLVREvaluation(*source), NLVRTrain(*source)
    swapped = []
    torch.manual_seed(0)
    for index in [0, 1, 2, 3] * 20:
        sample, plain = swapping[index], straight[index]
        assert plain["text"] == f"the left one {index} is right"
        swapped.append(sample["text"] != plain["text"])
        first, second = ("image1", "image0") if swapped[-1] else ("image0", "image1")
        assert torch.equal(sample[first], plain["image0"]) and torch.equal(sample[second], plain["image1"])
        assert sample["text"] == (f"the right one {index} is left" if swapped[-1] else plain["text"])
        assert sample["target"] == plain["target"]
    assert 20 < sum(swapped) < 60


def test_nlvr_swaps_in_training_only(config):
    train, dev, test = create_dataset("nlvr", config)
    torch.manual_seed(0)
    for split in (train, dev, test):
        texts = {split[0]["text"] for _ in range(20)}
        assert texts == {"the left one 0 is right"} | ({"the right one 0 is left"} if split is train else set())
    batch = next(iter(create_loader(dev, 3, False)))
    assert batch["image0"].shape == batch["image1"].shape == (3, 3, SIDE, SIDE)
    assert batch["target"].tolist() == [1, 0, 0] and batch["target"].dtype == torch.long and len(batch["text"]) == 3


def test_mirroring_twice_changes_nothing():
    assert mirror("left of the bright lefty is right") == "right of the bright lefty is left"
    assert mirror(mirror("left or right")) == "left or right"


def test_captions(config):
    train, val, test = create_dataset("caption", config)
    assert train[3]["caption"] == "a picture of picture 3"
    batch = list(create_loader(val, 5, False))[-1]
    assert batch["image"].shape == (3, 3, SIDE, SIDE) and batch["image_id"] == [5, 6, 7]
    assert len(val.references) == 8 and val.references[5:] == [["A."] * 3, ["A."], ["A."] * 2] and len(test) == 5


@pytest.mark.parametrize(
    "task, field, most",
    [("nlvr", "sentence", 40), ("caption", "caption", 30), ("retrieval", "caption", 30), ("vqa", "question", 50)],
)
def test_texts_are_cut_after_as_many_words_as_in_training(config, task, field, most):
    train, _, _ = create_dataset(task, config)
    train.entries[0][field] = " ".join(map(str, range(99)))
    ((text,),) = (texts for name, texts in train.texts_of(0).items() if name != "answer")
    assert text.removeprefix(config["prompt"]).split() == [str(number) for number in range(most)]


@pytest.mark.parametrize("task", ["nlvr", "caption", "vqa", "retrieval"])
def test_samples_are_numbered(config, task):
    for dataset in create_dataset(task, config):
        assert [int(dataset[number]["index"]) for number in range(len(dataset))] == list(range(len(dataset)))


def test_the_ground_truth_is_what_captions_are_scored_against(config, tmp_path):
    folder = Path(config["coco_gt_root"])
    folder.mkdir()
    annotations = [{"image_id": n // 2, "caption": f"Truth {n}.", "id": n} for n in reversed(range(16))]
    write(folder, {"coco_karpathy_val_gt": {"annotations": annotations, "images": []}})
    _, val, test = create_dataset("caption", config)
    assert val.references == [[f"Truth {2 * n + 1}.", f"Truth {2 * n}."] for n in range(8)]
    assert test.references[1] == ["A."] * 2


def test_answers_are_weighed_by_how_many_gave_them():
    assert weigh_answers(["a", "b", "a", "c", "a"], "vqa") == (["a", "b", "c"], [3 / 5, 1 / 5, 1 / 5])
    assert weigh_answers("cat", "vg") == (["cat"], [0.2])


def test_vqa_batches(config):
    train, val, test = create_dataset("vqa", config)
    assert len(train) == 9 and val.answer_list == ["red", "blue"]
    assert train.where(7).endswith("vqa_train.json, entry 7") and train.where(8).endswith("vg_qa.json, entry 0")
    batch = train.collate([train[7], train[8]])
    assert batch["answer"] == ["red", "blue", "because"] and batch["n"] == [2, 1]
    torch.testing.assert_close(batch["weights"], torch.tensor([0.7, 0.3, 0.2]))
    assert batch["question"] == ["what color?", "why?"]
    batch = next(iter(create_loader(val, 2, False)))
    assert batch["question_id"] == [0, 1] and batch["answers"] == [["red"] * 7 + ["blue"] * 3] * 2
    assert next(iter(create_loader(test, 2, False)))["answers"] is None
    assert val.collate([val[0], test[0]])["answers"] is None


@pytest.mark.parametrize("dataset", ["coco", "flickr"])
def test_retrieval_knows_whose_text_is_whose(config, dataset):
    train, val, _ = create_dataset("retrieval", {**config, "dataset": dataset})
    batch = train.collate([train[n] for n in range(8)])
    assert batch["idx"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and batch["caption"][2] == "picture 2"
    assert len(val) == 8 and len(val.texts) == 1 + 2 + 3 + 1 + 2 + 3 + 1 + 2
    for image, texts in enumerate(val.image_to_texts):
        assert len(texts) == 1 + image % 3 and all(val.text_to_image[text] == image for text in texts)
    assert sorted(sum(val.image_to_texts, [])) == list(range(len(val.texts)))


def test_evaluation_needs_no_training_files(config, tmp_path):
    for task, name in {"nlvr": "nlvr", "caption": "coco_karpathy", "vqa": "vqa"}.items():
        (tmp_path / f"annotation/{name}_train.json").unlink()
        train, val, test = create_dataset(task, config, evaluate=True)
        assert train is None and len(val) == 8 and len(test) > 0
        with pytest.raises(UserError, match=f"{name}_train.json"):
            create_dataset(task, config)


# What a mistake says.

ENTRY = {"images": ["sub/COCO_val_000000.png"] * 2, "sentence": "s", "label": "True"}
WRONG_ENTRIES = {
    "no sentence": {"images": ENTRY["images"], "label": "True"},
    "one image": {**ENTRY, "images": ENTRY["images"][:1]},
    "a number for a name": {**ENTRY, "images": [1, 2]},
    "another label": {**ENTRY, "label": "yes"},
    "a boolean label": {**ENTRY, "label": True},
    "no object": "sentence",
}


@pytest.mark.parametrize("wrong", WRONG_ENTRIES.values(), ids=WRONG_ENTRIES)
def test_a_wrong_entry_is_named(config, tmp_path, wrong):
    write(tmp_path / "annotation", {"nlvr_dev": [ENTRY, ENTRY, wrong]})
    with pytest.raises(UserError, match=r"nlvr_dev\.json, entry 2: ") as error:
        create_dataset("nlvr", config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '"text"', "\xff"])
def test_a_file_that_is_no_list_of_entries_is_named(config, tmp_path, content):
    (tmp_path / "annotation/nlvr_test.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"nlvr_test\.json: "):
        create_dataset("nlvr", config)


def test_wrong_entries_of_the_other_tasks_are_named(config, tmp_path):
    asked = {"question_id": 1, "question": "q", "image": "x.png", "dataset": "vqa"}
    cases = [
        ("vqa", "vqa_train", {**asked, "answer": "yes"}),
        ("vqa", "vg_qa", {**asked, "answer": ["yes"], "dataset": "vg"}),
        ("vqa", "vqa_val", {**asked, "dataset": "gqa"}),
        ("vqa", "vqa_test", {**asked, "question_id": 0.5}),
        ("vqa", "vqa_val", asked),
        ("caption", "coco_karpathy_test", {"image": "1.png", "caption": "a"}),
        ("retrieval", "coco_karpathy_train", {"image": "1.png", "caption": "a", "image_id": 0.5}),
    ]
    for task, name, entry in cases:
        path = tmp_path / f"annotation/{name}.json"
        whole = path.read_text()
        write(tmp_path / "annotation", {name: [entry]})
        with pytest.raises(UserError, match=rf"{name}\.json, entry 0: "):
            create_dataset(task, config)
        path.write_text(whole)


@pytest.mark.parametrize(
    "truth, fault",
    [
        ([], "expected {'annotations': [...]}, found []"),
        (
            {"annotations": [{"image_id": 0.5, "caption": "a"}]},
            ", annotation 0: 'image_id' should be a number or a string",
        ),
        ({"annotations": [{"image_id": 0, "caption": ["a"]}]}, ", annotation 0: 'caption' should be a string"),
        (
            {"annotations": [{"image_id": n, "caption": "a"} for n in range(6)]},
            " has no caption of 2 images, the first is sub/COCO_val_000006.png, whose image_id should be 6;",
        ),
    ],
)
def test_a_wrong_ground_truth_is_named(config, truth, fault):
    folder = Path(config["coco_gt_root"])
    folder.mkdir()
    write(folder, {"coco_karpathy_val_gt": truth})
    with pytest.raises(UserError) as error:
        create_dataset("caption", config)
    assert str(error.value).startswith(f"{folder}/coco_karpathy_val_gt.json") and fault in str(error.value)


def test_a_missing_answer_list_is_made_or_not_needed(config, tmp_path):
    (tmp_path / "annotation/answer_list.json").unlink()
    with pytest.raises(UserError, match=r"answer_list\.json: .*; .*python -m madtp answers --config CONFIG"):
        create_dataset("vqa", config)
    _, val, _ = create_dataset("vqa", {**config, "inference": "generate"})
    assert val.answer_list == []


def test_missing_folders_are_named_by_their_key(config):
    for task, key in {"nlvr": "image_root", "vqa": "vg_root"}.items():
        with pytest.raises(UserError, match=f"{key}: /nowhere"):
            create_dataset(task, {**config, key: "/nowhere"})
    with pytest.raises(UserError, match="image_root: an empty name is not a folder"):
        create_dataset("nlvr", {**config, "image_root": ""})
    with pytest.raises(UserError, match="/nowhere/nlvr_train.json.*ann_root"):
        create_dataset("nlvr", {**config, "ann_root": "/nowhere"})
    with pytest.raises(UserError, match="imagenet"):
        create_dataset("retrieval", {**config, "dataset": "imagenet"})


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("broken", ["missing", "cut", "junk", "folder", "outside"])
def test_an_image_that_cannot_be_read_is_named(config, tmp_path, broken, num_workers):
    """Also from a worker: one line, not a traceback."""
    path = tmp_path / "images/sub/COCO_val_000002.png"
    content, name = path.read_bytes(), "sub/COCO_val_000002.png"
    if broken in ("missing", "folder"):
        path.unlink()
    if broken == "folder":
        path.mkdir()
    if broken == "cut":
        path.write_bytes(content[: len(content) // 2])
    if broken == "junk":
        path.write_bytes(b"not an image")
    if broken == "outside":
        Image.new("RGB", (4, 4)).save(tmp_path / "2.png")
        name = "sub/../../2.png"
    file = tmp_path / "annotation/coco_karpathy_val.json"
    entries = json.loads(file.read_text())
    entries[2]["image"] = name
    file.write_text(json.dumps(entries))
    with pytest.raises(UserError) as error:
        _, val, _ = create_dataset("caption", config)
        list(create_loader(val, 2, False, num_workers=num_workers))
    message = str(error.value)
    assert "coco_karpathy_val.json, entry 2" in message and "2.png" in message and "\n" not in message


@settings(max_examples=20)
@given(st.sampled_from(["..", "../x.png", "a/../../x.png", "/x.png", "./../x.png"]))
def test_paths_do_not_leave_the_folder(name):
    with pytest.raises(UserError, match="outside"):
        read_image(Path("/tmp"), name, "somewhere, entry 1")


@pytest.mark.parametrize("shape, decoded", [((640, 480), (640, 480)), ((1000, 800), (500, 400))])
def test_large_photos_are_decoded_smaller_and_resize_to_the_same(tmp_path, shape, decoded):
    wanted, path = 160, tmp_path / "photo.jpg"
    coarse = np.random.default_rng(0).integers(0, 255, (shape[1] // 20, shape[0] // 20, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC).save(path, quality=90)
    whole, drafted = decode_image(path), decode_image(path, wanted)
    assert (whole.size, drafted.size) == (shape, decoded)
    transform = evaluation_transform(wanted)
    difference = (transform(whole).float() - transform(drafted).float()).abs()  # in levels of a pixel
    assert difference.mean() < 1


def test_any_picture_becomes_rgb(config, tmp_path):
    path = tmp_path / "images/sub/COCO_val_000000.png"
    for mode in ("L", "RGBA", "P", "1", "I;16", "LA"):
        Image.new(mode, (9, 5)).save(path)
        _, val, _ = create_dataset("caption", config)
        assert val[0]["image"].shape == (3, SIDE, SIDE)
