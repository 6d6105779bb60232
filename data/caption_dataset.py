"""COCO captions, in Karpathy's splits."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import torch

from data.annotated import AnnotatedDataset
from data.files import wrong_field
from data.text import clean_caption
from utils import UserError, excerpt, read_json

MAX_WORDS = 30


class CaptionTrain(AnnotatedDataset):
    """Samples {"image" [3, S, S], "caption", "index"} of `coco_karpathy_train.json`, one for each caption.

    Every caption begins with the `prompt` of the configuration, which the model leaves out of the loss.
    """

    fields = {"image": str, "caption": str}
    identity = ("image", "caption")

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        super().__init__(transform, files, config)
        self.prompt = config["prompt"]

    def texts_of(self, index: int) -> dict[str, list[str]]:
        return {"caption": [self.prompt + clean_caption(self.entries[index]["caption"], MAX_WORDS)]}

    def __getitem__(self, index: int) -> dict:
        (caption,) = self.texts_of(index)["caption"]
        return {"image": self.image(index), "caption": caption, "index": torch.tensor(index)}


class CaptionEvaluation(AnnotatedDataset):
    """Samples {"image" [3, S, S], "image_id", "index"} of `coco_karpathy_{split}.json`, one per image.

    Attributes:
        ids: for each image what its caption is filed by, see `image_ids`.
        truth: the file of the ground truth in `coco_gt_root`, which need not be there.
        references: for each image what people wrote, by the ground truth or else by the annotations.
    """

    fields = {"image": str, "caption": list}
    identity = ("image",)

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        super().__init__(transform, files, config)
        names = [entry["image"] for entry in self.entries]
        self.ids = image_ids(names)
        self.truth = Path(config["coco_gt_root"]) / f"{files[0].stem}_gt.json"
        if self.truth.exists():
            self.references = read_ground_truth(self.truth, names)
        else:
            self.references = [entry["caption"] for entry in self.entries]

    def __getitem__(self, index: int) -> dict:
        return {"image": self.image(index), "image_id": self.ids[index], "index": torch.tensor(index)}


def read_ground_truth(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Reads the captions of images, by their names, from a file in COCO's form.

    Raises:
        UserError: not of that form, or one of the images has no caption in it.
    """
    way_out = "correct it, or remove it to score against the annotations"
    content = read_json(path, way_out)
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected {{'annotations': [...]}}, found {excerpt(content)}; {way_out}")
    captions = defaultdict(list)
    for number, entry in enumerate(entries):
        if fault := wrong_field(entry, {"image_id": (int, str), "caption": str}):
            raise UserError(f"{path}, annotation {number}: {fault}; {way_out}")
        captions[entry["image_id"]].append(entry["caption"])
    ids = image_ids(names)
    if missing := [name for name, one in zip(names, ids, strict=True) if one not in captions]:
        wanted = f"the first is {missing[0]}, whose image_id should be {ids[names.index(missing[0])]!r}"
        raise UserError(f"{path} has no caption of {len(missing)} images, {wanted}; {way_out}")
    return [captions[one] for one in ids]


def image_ids(names: Sequence[str]) -> list[int] | list[str]:
    """What tells images apart: the numbers at the ends of their names, as COCO's have them, or else their names.

    Numbers will do where every name ends with one and no two names with the same.
    """
    numbers = {name: image_id(name) for name in names}
    different = None not in numbers.values() and len(set(numbers.values())) == len(numbers)
    return [numbers[name] for name in names] if different else list(names)


def image_id(name: str) -> int | None:
    """The number at the end of an image's file name, if there is one: 42 of `val2014/COCO_val2014_000000000042.jpg`."""
    digits = re.search(r"(?<!\d)\d{1,18}$", PurePosixPath(name).stem)
    return int(digits[0]) if digits else None
