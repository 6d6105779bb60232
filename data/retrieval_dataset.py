"""Image-text retrieval on COCO (Karpathy's splits) and Flickr30k, whose files have one form."""

from collections.abc import Callable
from pathlib import Path

import torch

from data.annotated import AnnotatedDataset
from data.text import clean_caption

MAX_WORDS = 30
FILES = {"coco": "coco_karpathy", "flickr": "flickr30k"}


class RetrievalTrain(AnnotatedDataset):
    """Samples {"image" [3, S, S], "caption", "idx", "index"}, one for each caption.

    `idx` numbers the images: captions of one image share it, so that they are not negatives of each other.
    """

    fields = {"image": str, "caption": str, "image_id": (str, int)}
    identity = ("image", "caption")

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        super().__init__(transform, files, config)
        self.numbers = {}
        for entry in self.entries:
            self.numbers.setdefault(entry["image_id"], len(self.numbers))

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        return {
            "image": self.image(index),
            "caption": clean_caption(entry["caption"], MAX_WORDS),
            "idx": torch.tensor(self.numbers[entry["image_id"]]),
            "index": torch.tensor(index),
        }


class RetrievalEvaluation(AnnotatedDataset):
    """Samples {"image" [3, S, S], "caption", "index"}, one per image with its first text; beside them all the texts.

    Attributes:
        images: the images' names.
        texts: every caption, image after image.
        text_to_image: for each text, the index of its image.
        image_to_texts: for each image, the indices of its texts.
    """

    fields = {"image": str, "caption": list}
    identity = ("image",)

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        super().__init__(transform, files, config)
        self.images = [entry["image"] for entry in self.entries]
        self.texts, self.text_to_image, self.image_to_texts = [], [], []
        for index, entry in enumerate(self.entries):
            first = len(self.texts)
            self.texts += [clean_caption(caption, MAX_WORDS) for caption in entry["caption"]]
            self.text_to_image += [index] * len(entry["caption"])
            self.image_to_texts.append(list(range(first, len(self.texts))))

    def __getitem__(self, index: int) -> dict:
        first = self.texts[self.image_to_texts[index][0]]
        return {"image": self.image(index), "caption": first, "index": torch.tensor(index)}
