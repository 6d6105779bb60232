"""COCO captions, in Karpathy's splits."""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from data.annotated import AnnotatedDataset
from data.files import wrong_field
from data.text import clean_caption
from utils import UserError, excerpt, read_json

logger = logging.getLogger(__name__)

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

    def __getitem__(self, index: int) -> dict:
        caption = self.prompt + clean_caption(self.entries[index]["caption"], MAX_WORDS)
        return {"image": self.image(index), "caption": caption, "index": torch.tensor(index)}


class CaptionEvaluation(AnnotatedDataset):
    """Samples {"image" [3, S, S], "image_id", "index"} of `coco_karpathy_{split}.json`, one per image.

    Attributes:
        references: for each image what people wrote, by the ground truth in `coco_gt_root` where there is one.
    """

    fields = {"image": str, "caption": list}
    identity = ("image",)

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        super().__init__(transform, files, config)
        truth = Path(config["coco_gt_root"]) / f"{files[0].stem}_gt.json"
        if truth.exists():
            self.references = read_ground_truth(truth, [entry["image"] for entry in self.entries])
        else:
            self.references = [entry["caption"] for entry in self.entries]
            logger.info("no %s: captions are scored against those of %s", truth, files[0])

    @classmethod
    def wrong_value(cls, entry: dict) -> str:
        name = entry["image"]
        return "" if image_id(name) is not None else f"image {name!r} should end with its COCO id, a number"

    def __getitem__(self, index: int) -> dict:
        number = image_id(self.entries[index]["image"])
        return {"image": self.image(index), "image_id": number, "index": torch.tensor(index)}


def read_ground_truth(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Reads the captions of images, by their names, from a file in COCO's form.

    Raises:
        UserError: not of that form, or one of the images has no caption in it.
    """
    way_out = "take the file of BLIP's release, or remove it to score against the annotations"
    content = read_json(path, way_out)
    entries = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected {{'annotations': [...]}}, found {excerpt(content)}; {way_out}")
    captions = defaultdict(list)
    for number, entry in enumerate(entries):
        if fault := wrong_field(entry, {"image_id": int, "caption": str}):
            raise UserError(f"{path}, annotation {number}: {fault}; {way_out}")
        captions[entry["image_id"]].append(entry["caption"])
    if missing := [name for name in names if image_id(name) not in captions]:
        raise UserError(f"{path} has no caption of {len(missing)} images, the first is {missing[0]}; {way_out}")
    return [captions[image_id(name)] for name in names]


def image_id(name: str) -> int | None:
    """The number at the end of an image's file name, if there is one: 42 of `val2014/COCO_val2014_000000000042.jpg`."""
    digits = re.search(r"(?<!\d)\d{1,18}$", Path(name).stem)
    return int(digits[0]) if digits else None
