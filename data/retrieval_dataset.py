"""Image-text retrieval on COCO (Karpathy's splits) and Flickr30k, whose files have one form."""

from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

import torch

from data.annotated import AnnotatedDataset
from data.decoding import is_published
from data.files import wrong_field
from data.text import clean_caption

MAX_WORDS = 30
FILES = {"coco": "coco_karpathy", "flickr": "flickr30k"}


class RetrievalTrain(AnnotatedDataset):
    """Samples {"image" [3, S, S], "caption", "idx", "index"}, one for each caption.

    `idx` numbers the images: captions of one image share it, so that they are not negatives of each other. Entries
    speak of one image if they have the same `image_id`, where they have one, or name the same file.
    """

    fields = {"image": str, "caption": str}
    identity = ("image", "caption")

    @classmethod
    def wrong_value(cls, entry: dict) -> str:
        return "" if "image_id" not in entry else wrong_field(entry, {"image_id": (str, int)})

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        super().__init__(transform, files, config)
        self.ids, self.numbers = {}, {}
        for entry in self.entries:
            identity = self.ids.setdefault(entry["image"], entry.get("image_id", entry["image"]))
            self.numbers.setdefault(identity, len(self.numbers))

    def texts_of(self, index: int) -> dict[str, list[str]]:
        return {"caption": [clean_caption(self.entries[index]["caption"], MAX_WORDS)]}

    def __getitem__(self, index: int) -> dict:
        (caption,) = self.texts_of(index)["caption"]
        return {
            "image": self.image(index),
            "caption": caption,
            "idx": torch.tensor(self.numbers[self.ids[self.entries[index]["image"]]]),
            "index": torch.tensor(index),
        }


class RetrievalEvaluation(AnnotatedDataset):
    """Samples {"image" [3, S, S], "caption", "index"}, one per image with its first text; beside them all the texts.

    Images of one name are one image, and texts that read alike are one text: whichever is found, it is right. Of the
    published test sets every text counts for its own image alone, as in the published numbers.

    Attributes:
        texts: every caption, image after image.
        text_to_image: for each text, the index of its image.
        image_to_texts: for each image, the indices of its texts.
        same_images: for each image a number, equal for those that are the same.
        same_texts: for each text likewise.
    """

    fields = {"image": str, "caption": list}
    identity = ("image",)

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        super().__init__(transform, files, config)
        self.texts, self.text_to_image, self.image_to_texts = [], [], []
        for index, entry in enumerate(self.entries):
            first = len(self.texts)
            self.texts += [clean_caption(caption, MAX_WORDS) for caption in entry["caption"]]
            self.text_to_image += [index] * len(entry["caption"])
            self.image_to_texts.append(list(range(first, len(self.texts))))
        published = all(is_published(entry["image"]) for entry in self.entries)
        self.same_images = numbered(entry["image"] for entry in self.entries)
        self.same_texts = numbered(range(len(self.texts)) if published else self.texts)

    def texts_of(self, index: int) -> dict[str, list[str]]:
        return {"caption": [self.texts[text] for text in self.image_to_texts[index]]}

    def __getitem__(self, index: int) -> dict:
        first = self.texts[self.image_to_texts[index][0]]
        return {"image": self.image(index), "caption": first, "index": torch.tensor(index)}


def numbered(values: Iterable[Hashable]) -> list[int]:
    """A number for each value, equal for equal ones."""
    numbers = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]
