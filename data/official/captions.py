"""Captions: Karpathy's three JSON files, COCO's own, and the text files of Flickr8k and Flickr30k."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.official import stream
from data.official.records import LeftOut, Record, Source, checked, coco_places, places, read_lines
from utils import UserError, excerpt

COCO, FLICKR = "coco_karpathy", "flickr30k"  # what the files of a task begin with
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
IN_NO_LIST = "captions of pictures that no list names"
EMPTY = "empty captions"
TOKEN = re.compile(r"([^\t]+?)(?:#\w*)?\t(.*)")
BARRED = re.compile(r"([^|]+?)\s*\|\s*\d+\s*\|?\s*(.*)")  # one line of Flickr30k's table lacks the second bar


def caption_rows(record: Record, names: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """The file and the entry for each caption of a training picture; for a picture of another split all in one."""
    (name,), captions = names, record.content["captions"]
    if record.split == "train":
        for caption in captions:
            entry = {"image": name, "caption": caption, "image_id": record.content["image_id"]}
            yield f"{record.files}_train", entry
    else:
        yield f"{record.files}_{record.split}", {"image": name, "caption": captions}


def captioned(
    split: str, files: str, picture: tuple[str, ...], captions: Sequence[str], image_id: str
) -> Iterator[Record | LeftOut]:
    """The record of a picture without its empty captions, which are counted."""
    said = [caption for caption in captions if caption.strip()]
    if len(said) < len(captions):
        yield LeftOut(EMPTY, len(captions) - len(said))
    if said:
        yield Record(split, files, (picture,), {"captions": said, "image_id": image_id})


def read_karpathy(sources: Sequence[Source]) -> Iterator[Record | LeftOut]:
    """Reads `dataset_coco.json`, `dataset_flickr30k.json` or `dataset_flickr8k.json`, with the splits in them.

    Raises:
        UserError: a file cannot be read, or an entry is not of this form.
    """
    for path, _ in sources:
        dataset = stream.value(path, "dataset") or "coco"
        for number, image in enumerate(stream.entries(path, "images")):
            checked(path, number, image, {"filename": str, "split": str})
            sentences = image.get("sentences")
            if not isinstance(sentences, list):
                raise UserError(f"{path}, entry {number}: 'sentences' should be a list, it is {excerpt(sentences)}")
            if image["split"] not in KARPATHY_SPLITS:
                raise UserError(f"{path}, entry {number}: split {image['split']!r}, not one of {list(KARPATHY_SPLITS)}")
            captions = [checked(path, number, sentence, {"raw": str})["raw"] for sentence in sentences]
            split, name = KARPATHY_SPLITS[image["split"]], image["filename"]
            if dataset == "coco":
                checked(path, number, image, {"filepath": str, "cocoid": int})
                picture, identity = coco_places(name, image["filepath"]), f"coco_{image['cocoid']}"
                yield from captioned(split, COCO, picture, captions, identity)
            else:
                picture, identity = flickr_places(name, dataset), f"{dataset}_{image.get('imgid', number)}"
                yield from captioned(split, FLICKR, picture, captions, identity)


def read_coco(sources: Sequence[Source]) -> Iterator[Record | LeftOut]:
    """Reads `captions_train2014.json` and its like; which split a file is stands in its name.

    Raises:
        UserError: a file cannot be read, its name tells no split, or an entry is not of this form.
    """
    for source in sources:
        path, split = source.path, source.own_split()
        captions = defaultdict(list)
        for number, one in enumerate(stream.entries(path, "annotations")):
            checked(path, number, one, {"image_id": int, "caption": str})
            captions[one["image_id"]].append(one["caption"])
        for number, image in enumerate(stream.entries(path, "images")):
            checked(path, number, image, {"id": int, "file_name": str})
            if said := captions.pop(image["id"], None):
                picture = coco_places(image["file_name"], *coco_folders(image["file_name"], path))
                yield from captioned(split, COCO, picture, said, f"coco_{image['id']}")
            else:
                yield LeftOut("pictures without a caption")
        if captions:
            yield LeftOut("captions of pictures that the file does not list", sum(map(len, captions.values())))


def coco_folders(name: str, path: Path) -> list[str]:
    """The folder of COCO's archive that holds a picture: by its own name or, since 2017, by that of the annotations."""
    found = re.match(r"COCO_(\w+?)_\d+\.", name) or re.search(r"captions_(\w+?\d{4})", path.name)
    return [found[1]] if found else []


def read_flickr8k(sources: Sequence[Source]) -> Iterator[Record | LeftOut]:
    """Reads `Flickr8k.token.txt` (or `captions.txt`, a table) and the lists of the pictures of each split.

    Raises:
        UserError: see `read_flickr`.
    """
    return read_flickr(sources, "flickr8k")


def read_flickr30k(sources: Sequence[Source]) -> Iterator[Record | LeftOut]:
    """Reads `results_20130124.token` (or `results.csv`, a table) and lists of the pictures of each split.

    Raises:
        UserError: see `read_flickr`.
    """
    return read_flickr(sources, "flickr30k")


def read_flickr(sources: Sequence[Source], dataset: str) -> Iterator[Record | LeftOut]:
    """Reads files of captions, and lists of pictures by name or number; without lists everything is for training.

    Raises:
        UserError: a file cannot be read or is empty, a list's name tells no split, a line is not of its form, or there
            are no captions.
    """
    captions, lists = defaultdict(list), {}
    for source in sources:
        lines = read_lines(source.path)
        if "\t" in lines[0] or "|" in lines[0] or lines[0].replace(" ", "") == "image,caption":
            for name, caption in flickr_captions(source.path, lines):
                captions[name].append(caption)
        elif "," in lines[0]:
            known = "image,caption, lines of NAME.jpg#0, a tab and a caption, or of NAME.jpg| 0| a caption"
            raise UserError(f"{source.path} begins with {excerpt(lines[0])}, expected a table with the head {known}")
        else:
            lists |= dict.fromkeys((plain(line) for line in lines), source.own_split())
    if not captions:
        raise UserError("no captions among the files; name Flickr8k.token.txt (lines of NAME.jpg#0, a tab, a caption)")
    for number, (name, said) in enumerate(captions.items()):
        if lists and plain(name) not in lists:
            yield LeftOut(IN_NO_LIST, len(said))
        else:
            picture, split = flickr_places(name, dataset), lists.get(plain(name), "train")
            yield from captioned(split, FLICKR, picture, said, f"{dataset}_{number}")
    if uncaptioned := lists.keys() - set(map(plain, captions)):
        yield LeftOut("pictures of the lists without a caption", len(uncaptioned))


def plain(name: str) -> str:
    """What lists call a picture: its name, with or without the ending."""
    return name.strip().removesuffix(".jpg")


def flickr_captions(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the name of a picture and a caption, line by line.

    Raises:
        UserError: a line is not of the form of the first one.
    """
    if "\t" in lines[0]:
        form, expected, said = TOKEN, "NAME.jpg#0, a tab and a caption", lines
    elif "|" in lines[0]:
        form, expected, said = BARRED, "NAME.jpg| 0| a caption", lines[1:]
    else:
        for number, row in enumerate(csv.reader(lines[1:], skipinitialspace=True), start=2):
            if len(row) < 2:
                raise UserError(f"{path}, line {number}: expected NAME.jpg,a caption, found {excerpt(','.join(row))}")
            yield row[0], ", ".join(row[1:])  # of a caption that stands in no quotes a comma is part
        return
    for number, line in enumerate(said, start=1 + len(lines) - len(said)):
        if not (found := form.fullmatch(line)):
            raise UserError(f"{path}, line {number}: expected {expected}, found {excerpt(line)}")
        yield found[1], found[2]


def flickr_places(name: str, dataset: str) -> tuple[str, ...]:
    """Where the pictures of Flickr8k and Flickr30k may be, by the names of their archives' folders."""
    folders = {"flickr8k": ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")}
    return places(name, *folders.get(dataset, (f"{dataset}-images", f"{dataset}_images", "images")))
