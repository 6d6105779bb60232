"""COCO captions, in Karpathy's splits."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data.files import image_folder, read_annotations, read_image
from data.loading import collate
from data.text import clean_caption
from utils import UserError

MAX_WORDS = 30


class CaptionTrain(Dataset):
    """Samples {"image" [3, S, S], "caption", "index"} of `coco_karpathy_train.json`, one for each caption.

    Args:
        prompt: what every caption begins with; the model leaves it out of the loss.
    """

    collate = staticmethod(collate)

    def __init__(self, transform: Callable, image_root: str, ann_root: str, prompt: str):
        self.file = Path(ann_root) / "coco_karpathy_train.json"
        self.entries = read_annotations(self.file, image=str, caption=str)
        self.images = image_folder(image_root, "image_root")
        self.transform, self.prompt = transform, prompt

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        image = self.transform(read_image(self.images, entry["image"], f"{self.file}, entry {index}"))
        caption = self.prompt + clean_caption(entry["caption"], MAX_WORDS)
        return {"image": image, "caption": caption, "index": torch.tensor(index)}


class CaptionEvaluation(Dataset):
    """Samples {"image" [3, S, S], "captions", "image_id", "index"} of `coco_karpathy_{split}.json`, one per image."""

    collate = staticmethod(collate)

    def __init__(self, transform: Callable, image_root: str, ann_root: str, split: str):
        self.file = Path(ann_root) / f"coco_karpathy_{split}.json"
        self.entries = read_annotations(self.file, image=str, caption=list)
        self.image_ids = [_image_id(entry["image"], f"{self.file}, entry {n}") for n, entry in enumerate(self.entries)]
        self.images = image_folder(image_root, "image_root")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        return {
            "image": self.transform(read_image(self.images, entry["image"], f"{self.file}, entry {index}")),
            "captions": [clean_caption(caption) for caption in entry["caption"]],
            "image_id": self.image_ids[index],
            "index": torch.tensor(index),
        }


def _image_id(name: str, where: str) -> int:
    """The number at the end of an image's file name: 42 of `val2014/COCO_val2014_000000000042.jpg`."""
    digits = re.search(r"(\d+)$", Path(name).stem)
    if digits is None:
        raise UserError(f"{where}: image {name!r} has no number at its end to be its COCO id; name it like COCO does")
    return int(digits[1])
