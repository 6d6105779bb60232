"""COCO captions, in Karpathy's splits."""

import re
from collections.abc import Callable
from pathlib import Path

import torch

from data.annotated import AnnotatedDataset
from data.text import clean_caption

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
    """Samples {"image" [3, S, S], "captions", "image_id", "index"} of `coco_karpathy_{split}.json`, one per image."""

    fields = {"image": str, "caption": list}
    identity = ("image",)

    @classmethod
    def wrong_value(cls, entry: dict) -> str:
        name = entry["image"]
        return "" if image_id(name) is not None else f"image {name!r} should end with its COCO id, a number"

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        return {
            "image": self.image(index),
            "captions": [clean_caption(caption) for caption in entry["caption"]],
            "image_id": image_id(entry["image"]),
            "index": torch.tensor(index),
        }


def image_id(name: str) -> int | None:
    """The number at the end of an image's file name, if there is one: 42 of `val2014/COCO_val2014_000000000042.jpg`."""
    digits = re.search(r"(?<!\d)\d{1,18}$", Path(name).stem)
    return int(digits[0]) if digits else None
