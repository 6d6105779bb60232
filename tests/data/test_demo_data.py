"""The generated data set: what the files say is checked against the pixels by a reader of its own."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BertTokenizer

from data import create_dataset, demo, shapes
from madtp.__main__ import main
from utils import UserError

SIZES = {"seed": 3, "train": 150, "val": 60, "test": 70, "pairs": 240}
PALETTE = {"red": (230, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 235)}
PALETTE |= {"yellow": (235, 225, 30), "purple": (205, 35, 215), "cyan": (30, 215, 225), None: (45, 45, 50)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    demo.make(folder, **SIZES)
    return folder


@pytest.fixture(scope="module")
def annotations(folder):
    """Every annotation file by name."""
    paths = (folder / "annotation").rglob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in paths}


@pytest.fixture(scope="module")
def seen(folder):
    """The looks in every image, read from its pixels; images where neighbors cannot be told apart are left out."""
    images = folder / "images"
    looks = {str(path.relative_to(images)): read_looks(path) for path in sorted(images.rglob("*.png"))}
    readable = {name: look for name, look in looks.items() if look is not None}
    assert len(readable) > 0.95 * len(looks)
    return readable


def read_looks(path: Path) -> set[tuple[str, str, str]] | None:
    """Finds (size, color, shape) of everything in an image, or None if things of one color touch.

    Works cell by cell: a thing fills one cell or a square of four, and shapes differ in how much of their bounding box
    they fill and in the width of its last row.
    """
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    distance = np.stack([abs(pixels - color).sum(2) for color in PALETTE.values()])
    nearest = distance.argmin(0)
    looks = set()
    for number, color in enumerate(PALETTE):
        if color is None:
            continue
        painted = nearest == number
        cells = {
            (r, c) for r in range(8) for c in range(8) if painted[r * 12 : r * 12 + 12, c * 12 : c * 12 + 12].any()
        }
        while cells:
            group, border = set(), {cells.pop()}
            while border:
                row, column = border.pop()
                group.add((row, column))
                border |= {(row + r, column + c) for r, c in ((0, 1), (1, 0), (0, -1), (-1, 0))} & cells
                cells -= border
            top, left, side = min(group)[0], min(c for _, c in group), {1: 1, 4: 2}.get(len(group))
            if side is None or group != {(top + r, left + c) for r in range(side) for c in range(side)}:
                return None
            part = painted[top * 12 : (top + side) * 12, left * 12 : (left + side) * 12]
            looks.add(({1: "small", 2: "large"}[side], color, name_shape(part)))
    return looks


def name_shape(painted: np.ndarray) -> str:
    rows, columns = painted.any(1), painted.any(0)
    box = painted[rows][:, columns]
    if box.all():
        return "square"
    if box[-1].mean() > 0.9:
        return "triangle"
    return "circle" if box.mean() > 0.65 else "cross"


def looks_of(caption: str) -> set[tuple[str, str, str]]:
    """The looks that a caption speaks of."""
    found = [re.fullmatch(r"a (\w+) (\w+) (\w+)", phrase).groups() for phrase in caption.split(" and ")]
    assert len(set(found)) == len(found)
    return set(found)


def is_true(sentence: str, left: set, right: set) -> bool:
    """Judges a statement about two images."""
    family, color, shape = re.fullmatch(r"(.*) contains? a (\w+) (\w+)", sentence).groups()
    left, right = (any(look[1:] == (color, shape) for look in looks) for looks in (left, right))
    return {"both images": left and right, "at least one image": left or right, "the left image": left}[family]


def answer(question: str, looks: set) -> str:
    """Answers a question about one image."""
    told = re.fullmatch(r"what color is the (\w+)\??", question)
    if told:
        (color,) = [color for _, color, shape in looks if shape == told[1]]
        return color
    told = re.fullmatch(r"what shape is the (\w+) object\??", question)
    if told:
        (shape,) = [shape for _, color, shape in looks if color == told[1]]
        return shape
    told = re.fullmatch(r"(?:is there|does the image contain) a (\w+) (\w+)\??", question)
    if told:
        return "yes" if any(look[1:] == told.groups() for look in looks) else "no"
    noun = re.fullmatch(r"how many (.*) are there\??", question)[1]
    if noun == "objects":
        return str(len(looks))
    if noun.endswith(" objects"):
        return str(sum(color == noun.split()[0] for _, color, _ in looks))
    return str(sum(noun in (shape + "s", shape + "es") for _, _, shape in looks))


def test_captions_say_what_the_pixels_show(annotations, seen):
    checked = 0
    for name in ("coco_karpathy_train", "coco_karpathy_val", "coco_karpathy_test", "flickr30k_train", "flickr30k_test"):
        for entry in annotations[name]:
            texts = entry["caption"] if isinstance(entry["caption"], list) else [entry["caption"]]
            if entry["image"] in seen:
                assert all(looks_of(text) == seen[entry["image"]] for text in texts), entry
                checked += 1
    assert checked > 400


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_statements_are_as_true_as_their_labels(annotations, seen, split):
    for entry in annotations[f"nlvr_{split}"]:
        left, right = entry["images"]
        if left in seen and right in seen:
            assert str(is_true(entry["sentence"], seen[left], seen[right])) == entry["label"], entry


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_labels_are_balanced_in_every_family(annotations, split):
    counts = Counter((entry["sentence"].split(" contain")[0], entry["label"]) for entry in annotations[f"nlvr_{split}"])
    assert len(counts) == 6 and len(set(counts.values())) == 1, counts


def test_false_statements_are_near_misses(annotations, seen):
    """Where the thing is missing from an image, something of its color or of its shape is there."""
    for entry in annotations["nlvr_train"]:
        color, shape = entry["sentence"].split()[-2:]
        for looks in (seen.get(name, {(None, color, shape)}) for name in entry["images"]):
            assert any(color == other_color or shape == other_shape for _, other_color, other_shape in looks), entry


def test_statements_need_both_images():
    """The best guess from the sentence and one image is right three times of four; `left` from both unordered, half."""
    rng = np.random.default_rng(0)
    scenes = shapes.sample_splits(rng, {"all": 600})["all"]
    labels = {"left": defaultdict(Counter), "right": defaultdict(Counter), "unordered": defaultdict(Counter)}
    for left, right, sentence, label in shapes.statements(scenes, 3000, rng):
        family, look = sentence.split(" contain")[0], tuple(sentence.split()[-2:])
        left, right = shapes.contains(scenes[left], *look), shapes.contains(scenes[right], *look)
        if family != "the left image":
            labels["left"][family, left][label] += 1
            labels["right"][family, right][label] += 1
        else:
            labels["unordered"][left + right][label] += 1
    for known, counts in labels.items():
        best = sum(max(count.values()) for count in counts.values()) / sum(count.total() for count in counts.values())
        assert best == (0.5 if known == "unordered" else 0.75), known


@pytest.mark.parametrize("name", ["vqa_train", "vqa_val", "vqa_test_answers", "vg_qa"])
def test_answers_are_right(annotations, seen, name):
    kinds = Counter()
    for entry in annotations[name]:
        if entry["image"] in seen:
            answers = [entry["answer"]] if isinstance(entry["answer"], str) else entry["answer"]
            right = answer(entry["question"], seen[entry["image"]])
            assert len(answers) in (1, 10) and answers.count(right) >= 0.9 * len(answers), entry
            kinds[" ".join(entry["question"].split()[:2])] += 1
    assert name == "vg_qa" or set(kinds) == {"what color", "what shape", "how many", "is there", "does the"}


def test_question_ids_differ_and_test_answers_are_kept_back(annotations):
    entries = [entry for name in ("vqa_train", "vqa_val", "vqa_test", "vg_qa") for entry in annotations[name]]
    assert len({entry["question_id"] for entry in entries}) == len(entries)
    assert not any("answer" in entry for entry in annotations["vqa_test"])
    without = [{key: value for key, value in one.items() if key != "answer"} for one in annotations["vqa_test_answers"]]
    assert without == annotations["vqa_test"]
    given = {answer for name in ("vqa_train", "vqa_val") for entry in annotations[name] for answer in entry["answer"]}
    assert given <= set(annotations["answer_list"])


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_lists_each_caption_once_and_its_ground_truth(annotations, split):
    entries, truth = annotations[f"coco_karpathy_{split}"], annotations[f"coco_karpathy_{split}_gt"]
    texts = [text for entry in entries for text in entry["caption"]]
    assert len(set(texts)) == len(texts)
    said = {(int(Path(entry["image"]).stem), text) for entry in entries for text in entry["caption"]}
    assert {(annotation["image_id"], annotation["caption"]) for annotation in truth["annotations"]} == said
    assert {image["id"] for image in truth["images"]} == {number for number, _ in said}
    assert len({annotation["id"] for annotation in truth["annotations"]}) == len(said)


def test_tokenizer_knows_every_word(folder, annotations):
    tokenizer = BertTokenizer.from_pretrained(folder / "tokenizer")
    texts = ["a picture of", "the right image contains a red cross", *annotations["answer_list"]]
    for name, entries in annotations.items():
        if not name.endswith("_gt") and name != "answer_list":
            texts += [str(entry.get("caption") or entry.get("question") or entry["sentence"]) for entry in entries]
    words = {word for text in texts for word in re.findall(r"[a-z0-9]+|\?", text)}
    assert tokenizer.convert_tokens_to_ids("[PAD]") == 0
    assert all(tokenizer.tokenize(word) == [word] for word in words)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), objects=st.integers(2, 3))
def test_no_scene_occurs_twice(seed, objects):
    splits = shapes.sample_splits(np.random.default_rng(seed), {"train": 60, "val": 30, "test": 30}, objects)
    scenes = [scene for split in splits.values() for scene in split]
    assert len(set(scenes)) == len(scenes) == 120
    for scene in scenes:
        cells = [
            (thing.row + r, thing.column + c)
            for thing in scene
            for r in range(shapes.SIZES[thing.size])
            for c in range(shapes.SIZES[thing.size])
        ]
        assert len(set(cells)) == len(cells) and max(max(cells)) < shapes.GRID
        assert len({thing[:3] for thing in scene}) == len(scene) <= objects


def test_everything_follows_from_the_seed(tmp_path):
    def digest(name: str, seed: int) -> dict[str, bytes]:
        demo.make(tmp_path / name, seed=seed, train=50, val=50, test=50, pairs=12)
        paths = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in paths}

    once, again, other = digest("once", 1), digest("again", 1), digest("other", 2)
    assert once == again
    differing = {path for path in once if once[path] != other[path]}
    assert set(once) - differing == {"tokenizer/vocab.txt", "annotation/answer_list.json"}


def test_the_command_keeps_what_is_there(tmp_path, capsys):
    out = tmp_path / "demo"
    command = ["demo_data", "--out", str(out), "--train", "50", "--val", "50", "--test", "50", "--pairs", "12"]
    assert main(command) == 0
    assert re.search(r"150 images, \d+ annotations in [\d.]+ s: ", capsys.readouterr().out)
    arguments = json.loads((out / "demo.json").read_text())["arguments"]
    assert (arguments["objects"], arguments["grid"]) == (shapes.OBJECTS, shapes.GRID)
    image = out / "images/train/000001.png"
    written = image.stat().st_mtime_ns
    assert main(command) == 0 and image.stat().st_mtime_ns == written
    assert "kept" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    assert str(out) in capsys.readouterr().err
    (out / "demo.json").write_text("{")
    assert main(command) == 2 and "demo.json: not JSON" in capsys.readouterr().err
    (out / "demo.json").write_text(json.dumps({"arguments": arguments, "entries": None}))  # as after an interruption
    assert main(command) == 0 and image.stat().st_mtime_ns > written
    assert json.loads((out / "demo.json").read_text())["entries"]["nlvr_train"] == 12


def test_what_is_somebody_s_own_is_not_written_over(tmp_path, capsys):
    own = tmp_path / "annotation" / "nlvr_train.json"
    own.parent.mkdir()
    own.write_text("mine")
    command = ["demo_data", "--out", str(tmp_path), "--train", "50", "--val", "50", "--test", "50", "--pairs", "12"]
    assert main(command) == 2 and own.read_text() == "mine"
    error = f"error: {tmp_path} holds annotation of something else: move them away or choose another --out\n"
    assert capsys.readouterr().err == error and [*tmp_path.iterdir()] == [own.parent]


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"train": 10}, {"pairs": 0}, {"objects": 0}, {"objects": 9}, {"grid": 3}, {"grid": 10**6}]
)
def test_impossible_sizes_are_refused(tmp_path, wrong):
    with pytest.raises(UserError):
        demo.make(tmp_path / "demo", **(SIZES | wrong))
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("task", ["nlvr", "caption", "vqa", "retrieval"])
@pytest.mark.parametrize("dataset", ["coco", "flickr"])
def test_the_data_sets_read_every_entry(folder, task, dataset):
    roots = dict.fromkeys(("image_root", "vqa_root", "vg_root"), str(folder / "images"))
    config = {**roots, "ann_root": str(folder / "annotation"), "image_size": 24, "prompt": "", "dataset": dataset}
    config |= {"coco_gt_root": str(folder / "annotation/coco_gt"), "inference": "rank"}
    for split in create_dataset(task, {**config, "augment": False, "train_files": ["vqa_train", "vg_qa"]}):
        samples = [split[index] for index in range(len(split))]
        assert [int(sample["index"]) for sample in samples] == list(range(len(split)))
        assert split.collate(samples[:3])["index"].tolist() == [0, 1, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is always full")
def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    image = tmp_path / "images" / "train" / "000002.png"
    image.symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"cannot write {image}: No space left on device; free some space"):
        demo.make(tmp_path, **SIZES)
