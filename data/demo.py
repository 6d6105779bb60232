"""The demo's data set: the generated world of `data/shapes.py` in exactly the file formats of the real data sets.

    python -m madtp demo_data --out datasets/demo

Everything follows from the seed.
"""

import argparse
import json
import time
from itertools import count
from pathlib import Path
from zlib import Z_HUFFMAN_ONLY

import numpy as np

from data.shapes import (
    CELL,
    GRID,
    OBJECTS,
    VOCABULARY,
    Scene,
    answer_list,
    captions,
    draw,
    questions,
    sample_splits,
    statements,
    ten_answers,
)
from utils import UserError, prepare_output, read_json, write_atomic, writing_to

TRAIN, VAL, TEST = "train", "val", "test"
MANIFEST = "demo.json"
LARGEST_GRID = 100


def make(
    folder: str | Path,
    *,
    seed: int,
    train: int,
    val: int,
    test: int,
    pairs: int,
    objects: int = OBJECTS,
    grid: int = GRID,
) -> dict[str, int]:
    """Writes the whole data set: `images/`, `annotation/`, `tokenizer/`, before them and again at the end `demo.json`.

    Args:
        train, val, test: images of the splits.
        pairs: NLVR2 statements to train on; validation and test have about one per image.
        objects: things in an image, at most.
        grid: side of an image in cells of 12 pixels.

    Returns:
        Entries by annotation file.

    Raises:
        UserError: sizes that cannot be, or a folder that cannot be written.
    """
    if min(train, val, test) < 50 or pairs < 6:
        asked = f"train {train}, val {val}, test {test}, pairs {pairs}"
        raise UserError(f"{asked}: ask for 50 images of each split and 6 pairs, or more")
    if grid > LARGEST_GRID:
        pixels = LARGEST_GRID * CELL
        raise UserError(f"grid {grid}: ask for {LARGEST_GRID} or less, pictures of {pixels} pixels on a side")
    if seed < 0:
        raise UserError(f"seed {seed}: ask for 0 or more")
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    splits = sample_splits(rng, {TRAIN: train, VAL: val, TEST: test}, objects, grid)
    arguments = {"seed": seed, TRAIN: train, VAL: val, TEST: test, "pairs": pairs, "objects": objects, "grid": grid}
    prepare_output(folder)
    write_manifest(folder, arguments, None)
    names = write_images(folder / "images", splits, rng, grid)

    files = {}
    for split, scenes in splits.items():
        said = statements(scenes, pairs if split == TRAIN else len(scenes), rng)
        files |= nlvr_files(split, names[split], said)
        files |= caption_files(split, names[split], scenes)
        files |= vqa_files(split, names[split], scenes, rng)
    files["answer_list"] = answer_list(objects)
    for name, entries in files.items():
        prepare_output((folder / "annotation" / name).parent)
        write_atomic(folder / "annotation" / f"{name}.json", json.dumps(entries, separators=(",", ":")))
    prepare_output(folder / "tokenizer")
    write_atomic(folder / "tokenizer" / "vocab.txt", "\n".join(VOCABULARY) + "\n")
    counts = {name: len(entries) for name, entries in files.items() if isinstance(entries, list)}
    write_manifest(folder, arguments, counts)
    return counts


def write_manifest(folder: Path, arguments: dict, entries: dict[str, int] | None) -> None:
    """Says whose folder this is, and that it is complete once its entries are counted."""
    write_atomic(folder / MANIFEST, json.dumps({"arguments": arguments, "entries": entries}, indent=1))


def write_images(
    folder: Path, splits: dict[str, list[Scene]], rng: np.random.Generator, grid: int
) -> dict[str, list[str]]:
    """Draws every scene into a PNG file; numbers run on through the splits. Returns names relative to `folder`."""
    numbers = count(1)
    names = {}
    for split, scenes in splits.items():
        prepare_output(folder / split)
        names[split] = [f"{split}/{next(numbers):06d}.png" for _ in scenes]
        for name, scene in zip(names[split], scenes, strict=True):
            with writing_to(folder / name):
                draw(scene, rng, grid).save(folder / name, compress_type=Z_HUFFMAN_ONLY)  # noise repeats nothing
    return names


def nlvr_files(split: str, names: list[str], said: list[tuple[int, int, str, bool]]) -> dict[str, list]:
    """Returns the annotation file of the pairs."""
    entries = [
        {"images": [names[left], names[right]], "sentence": sentence, "label": str(label)}
        for left, right, sentence, label in said
    ]
    return {f"nlvr_{'dev' if split == VAL else split}": entries}


def caption_files(split: str, names: list[str], scenes: list[Scene]) -> dict[str, list | dict]:
    """Returns the files of captioning and retrieval.

    COCO trains on the sorted caption alone, which makes an exact match learnable, Flickr on every one. Outside training
    only the first image of each caption is listed: two that are described alike cannot be told apart by retrieval.
    """
    described = [(name, captions(scene)) for name, scene in zip(names, scenes, strict=True)]
    if split == TRAIN:
        flickr = [
            {"image": name, "caption": caption, "image_id": f"flickr_{image_number(name)}"}
            for name, texts in described
            for caption in texts
        ]
        coco = [
            {"image": name, "caption": texts[0], "image_id": f"coco_{image_number(name)}"} for name, texts in described
        ]
        return {"coco_karpathy_train": coco, "flickr30k_train": flickr}

    first = {texts[0]: (name, texts) for name, texts in reversed(described)}
    entries = [{"image": name, "caption": texts} for name, texts in reversed(first.values())]
    truth = [
        {"image_id": image_number(entry["image"]), "caption": caption}
        for entry in entries
        for caption in entry["caption"]
    ]
    coco_gt = {
        "info": {},
        "licenses": [],
        "type": "captions",
        "images": [{"id": image_number(entry["image"])} for entry in entries],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(truth, start=1)],
    }
    return {
        f"coco_karpathy_{split}": entries,
        f"flickr30k_{split}": entries,
        f"coco_gt/coco_karpathy_{split}_gt": coco_gt,
    }


def image_number(name: str) -> int:
    """The number in an image's file name."""
    return int(Path(name).stem)


def vqa_files(split: str, names: list[str], scenes: list[Scene], rng: np.random.Generator) -> dict[str, list]:
    """Returns the files of the questions; those of the test split come without answers, as VQAv2's do.

    Their answers have a file of their own, `vqa_test_answers`: the same entries with them, for whoever keeps the score.
    A question's id is its image's number and two digits. Visual Genome's part asks a tenth of the images once more.
    """
    asked, genome, kept_back = [], [], []
    for name, scene in zip(names, scenes, strict=True):
        for number, (kind, (question, answer)) in enumerate(questions(scene, rng).items()):
            entry = {"question_id": image_number(name) * 100 + number, "question": question}
            entry |= {"image": name, "dataset": "vqa"}
            people = np.random.default_rng(entry["question_id"]) if split == TEST else rng
            answered = entry | {"answer": ten_answers(kind, answer, people)}
            asked.append(entry if split == TEST else answered)
            kept_back += [answered] * (split == TEST)
        if split == TRAIN and rng.random() < 0.1:
            question, answer = questions(scene, rng)["existence"]
            question_id = image_number(name) * 100 + 99
            genome.append(
                {"question_id": question_id, "question": question, "answer": answer, "image": name, "dataset": "vg"}
            )
    further = {TRAIN: {"vg_qa": genome}, TEST: {"vqa_test_answers": kept_back}}
    return {f"vqa_{split}": asked} | further.get(split, {})


def run(args: argparse.Namespace) -> None:
    """Makes the data set, goes on with one that was broken off, or keeps the one that is there, made the same way.

    Raises:
        UserError: the folder holds something else, or sizes that cannot be.
    """
    arguments = dict(vars(args))
    folder = Path(arguments.pop("out"))
    manifest = folder / MANIFEST
    if manifest.exists():
        made = read_json(manifest, "delete the folder or choose another --out")
        if not isinstance(made, dict) or made.get("arguments") != arguments:
            raise UserError(f"{folder} holds a demo made with other arguments: delete it or choose another --out")
        if made.get("entries"):
            print(f"kept {folder}, which was made with the same arguments")
            return
    elif others := [name for name in ("images", "annotation", "tokenizer") if (folder / name).exists()]:
        held = f"{folder} holds {' and '.join(others)} of something else"
        raise UserError(f"{held}: move them away or choose another --out")
    start = time.perf_counter()
    entries = make(folder, **arguments)
    images = arguments["train"] + arguments["val"] + arguments["test"]
    seconds = time.perf_counter() - start
    print(f"{images} images, {sum(entries.values())} annotations in {seconds:.1f} s: {folder}")
