"""Image-text retrieval on COCO (Karpathy's splits) and Flickr30k, whose files have one form."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data.files import image_folder, read_annotations, read_image
from data.loading import collate
from data.text import clean_caption

MAX_WORDS = 30
FILES = {"coco": "coco_karpathy", "flickr": "flickr30k"}


class RetrievalTrain(Dataset):
    """Samples {"image" [3, S, S], "caption", "idx", "index"}, one for each caption.

    `idx` numbers the images: captions of one image share it, so that they are not negatives of each other.
    """

    collate = staticmethod(collate)

    def __init__(self, transform: Callable, image_root: str, ann_root: str, dataset: str):
        self.file = Path(ann_root) / f"{FILES[dataset]}_train.json"
        self.entries = read_annotations(self.file, image=str, caption=str, image_id=(str, int))
        self.images = image_folder(image_root, "image_root")
        self.transform = transform
        self.numbers = {}
        for entry in self.entries:
            self.numbers.setdefault(entry["image_id"], len(self.numbers))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        return {
            "image": self.transform(read_image(self.images, entry["image"], f"{self.file}, entry {index}")),
            "caption": clean_caption(entry["caption"], MAX_WORDS),
            "idx": torch.tensor(self.numbers[entry["image_id"]]),
            "index": torch.tensor(index),
        }


class RetrievalEvaluation(Dataset):
    """Samples {"image" [3, S, S], "caption", "index"}, one per image with its first text, and beside them all the texts.

    Attributes:
        images: the images' names.
        texts: every caption, image after image.
        text_to_image: for each text, the index of its image.
        image_to_texts: for each image, the indices of its texts.
    """

    collate = staticmethod(collate)

    def __init__(self, transform: Callable, image_root: str, ann_root: str, dataset: str, split: str):
        self.file = Path(ann_root) / f"{FILES[dataset]}_{split}.json"
        entries = read_annotations(self.file, image=str, caption=list)
        self.folder = image_folder(image_root, "image_root")
        self.transform = transform
        self.images = [entry["image"] for entry in entries]
        self.texts, self.text_to_image, self.image_to_texts = [], [], []
        for index, entry in enumerate(entries):
            first = len(self.texts)
            self.texts += [clean_caption(caption, MAX_WORDS) for caption in entry["caption"]]
            self.text_to_image += [index] * len(entry["caption"])
            self.image_to_texts.append(list(range(first, len(self.texts))))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        image = read_image(self.folder, self.images[index], f"{self.file}, entry {index}")
        first = self.texts[self.image_to_texts[index][0]]
        return {"image": self.transform(image), "caption": first, "index": torch.tensor(index)}
