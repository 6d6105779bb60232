"""NLVR2: a sentence about two images, true or false."""

from collections.abc import Callable
from pathlib import Path

import torch

from data.annotated import AnnotatedDataset
from data.text import clean_caption

MAX_WORDS = 40
LABELS = {"False": 0, "True": 1}
MIRRORED = {"left": "right", "right": "left"}


class NLVREvaluation(AnnotatedDataset):
    """Samples {"image0", "image1" [3, S, S], "text", "target", "index"} of `nlvr_dev.json` or `nlvr_test.json`."""

    fields = {"images": list, "sentence": str, "label": str}
    identity = ("images", "sentence")
    swap = False

    @classmethod
    def wrong_value(cls, entry: dict) -> str:
        count = len(entry["images"])
        return "" if count == 2 else f"'images' should be two, not {count}"

    @classmethod
    def wrong_label(cls, entry: dict) -> str:
        label = entry["label"]
        return "" if label in LABELS else f"'label' should be 'True' or 'False', not {label!r}"

    @staticmethod
    def images_of(entry: dict) -> list[tuple[str, str]]:
        return [("image_root", name) for name in entry["images"]]

    def texts_of(self, index: int) -> dict[str, list[str]]:
        return {"text": [clean_caption(self.entries[index]["sentence"], MAX_WORDS)]}

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        (text,), order = self.texts_of(index)["text"], (0, 1)
        if self.swap and torch.rand(()) < 0.5:
            text, order = mirror(text), (1, 0)
        image0, image1 = (self.image(index, number) for number in order)
        return {
            "image0": image0,
            "image1": image1,
            "text": text,
            "target": torch.tensor(LABELS[entry["label"]]),
            "index": torch.tensor(index),
        }


class NLVRTrain(NLVREvaluation):
    """The same of `nlvr_train.json`.

    If the configuration says `augment`, the two images are exchanged every other time, and with them "left" and "right"
    in the sentence.
    """

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        super().__init__(transform, files, config)
        self.swap = config.get("augment", True)


def mirror(sentence: str) -> str:
    """Says of the exchanged images what `sentence` says of the two: the words left and right change places."""
    return " ".join(MIRRORED.get(word, word) for word in sentence.split())
