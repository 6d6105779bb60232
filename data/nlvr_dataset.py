"""NLVR2: a sentence about two images, true or false."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data.files import image_folder, read_annotations, read_image
from data.loading import collate
from data.text import clean_caption
from utils import UserError

MAX_WORDS = 40
LABELS = {"False": 0, "True": 1}
MIRRORED = {"left": "right", "right": "left"}


class NLVRDataset(Dataset):
    """Samples {"image0", "image1" [3, S, S], "text", "target", "index"}.

    Args:
        split: "train", "dev" or "test", of `nlvr_{split}.json`.
        swap: exchange the two images every other time, and with them "left" and "right" in the sentence.
    """

    collate = staticmethod(collate)

    def __init__(self, transform: Callable, image_root: str, ann_root: str, split: str, swap: bool = False):
        self.file = Path(ann_root) / f"nlvr_{split}.json"
        self.entries = read_annotations(self.file, images=list, sentence=str, label=str)
        for number, entry in enumerate(self.entries):
            if len(entry["images"]) != 2 or entry["label"] not in LABELS:
                raise UserError(
                    f"{self.file}, entry {number}: expected two images and the label 'True' or 'False', found "
                    f"{len(entry['images'])} and {entry['label']!r}; correct it or take the file of BLIP's release"
                )
        self.images = image_folder(image_root, "image_root")
        self.transform, self.swap = transform, swap

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        text, names = clean_caption(entry["sentence"], MAX_WORDS), entry["images"]
        if self.swap and torch.rand(()) < 0.5:
            text, names = mirror(text), names[::-1]
        where = f"{self.file}, entry {index}"
        image0, image1 = (self.transform(read_image(self.images, name, where)) for name in names)
        return {
            "image0": image0,
            "image1": image1,
            "text": text,
            "target": torch.tensor(LABELS[entry["label"]]),
            "index": torch.tensor(index),
        }


def mirror(sentence: str) -> str:
    """Says of the exchanged images what `sentence` says of the two: the words left and right change places."""
    return " ".join(MIRRORED.get(word, word) for word in sentence.split())
