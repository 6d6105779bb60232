"""VQAv2, with Visual Genome's questions beside it for training."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from itertools import accumulate, chain
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data.files import image_folder, read_annotations, read_image, read_json
from data.loading import collate
from data.text import clean_question
from utils import UserError

GENOME_WEIGHT = 0.2
ROOTS = {"vqa": "vqa_root", "vg": "vg_root"}  # where an entry's `dataset` keeps its images


class _Questions(Dataset):
    """Questions of several annotation files in a row, with their images.

    Args:
        roots: image folders by config key, `vqa_root` and, where a file has questions of Visual Genome, `vg_root`.
        names: annotation files without ending.
    """

    def __init__(self, transform: Callable, roots: dict[str, str], ann_root: str, names: list[str], **fields):
        self.files = [Path(ann_root) / f"{name}.json" for name in names]
        read = [read_annotations(file, question=str, image=str, dataset=str, **fields) for file in self.files]
        self.ends = list(accumulate(len(entries) for entries in read))
        self.entries = list(chain.from_iterable(read))
        self.transform = transform
        self.folders = {}
        for index, entry in enumerate(self.entries):
            if entry["dataset"] not in ROOTS:
                raise UserError(
                    f"{self.where(index)}: dataset should be one of {list(ROOTS)}, not {entry['dataset']!r}"
                )
            key = ROOTS[entry["dataset"]]
            if entry["dataset"] not in self.folders:
                self.folders[entry["dataset"]] = image_folder(roots[key], key)

    def __len__(self) -> int:
        return len(self.entries)

    def where(self, index: int) -> str:
        """Names the file and the entry in it, for errors."""
        file = bisect_right(self.ends, index)
        return f"{self.files[file]}, entry {index - (self.ends[file - 1] if file else 0)}"

    def sample(self, index: int) -> dict:
        """What every sample has: {"image" [3, S, S], "question", "index"}."""
        entry = self.entries[index]
        image = read_image(self.folders[entry["dataset"]], entry["image"], self.where(index))
        return {
            "image": self.transform(image),
            "question": clean_question(entry["question"]),
            "index": torch.tensor(index),
        }


class VQATrain(_Questions):
    """Samples with "answers", the different ones, and "weights"; a batch has them flat, with "n" answers a question."""

    def __init__(self, transform: Callable, roots: dict[str, str], ann_root: str, names: list[str]):
        super().__init__(transform, roots, ann_root, names, answer=(list, str))
        for index, entry in enumerate(self.entries):
            if isinstance(entry["answer"], str) != (entry["dataset"] == "vg"):
                raise UserError(
                    f"{self.where(index)}: answer {entry['answer']!r} of dataset {entry['dataset']!r}: vqa has a list "
                    "of those given, vg a single string; correct the entry"
                )

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        answers, weights = weigh_answers(entry["answer"], entry["dataset"])
        return {**self.sample(index), "answers": answers, "weights": weights}

    @staticmethod
    def collate(samples: list[dict]) -> dict:
        """Returns image, question, index; answer and weights flat over the batch; n, the answers of each question."""
        batch = collate(samples)
        answers, weights = batch.pop("answers"), batch.pop("weights")
        return {
            **batch,
            "answer": list(chain.from_iterable(answers)),
            "n": [len(different) for different in answers],
            "weights": torch.tensor(list(chain.from_iterable(weights))),
        }


class VQAEvaluation(_Questions):
    """Samples with "question_id" and "answers": the ten given, or None where the file keeps them back (test).

    Attributes:
        answer_list: the answers to rank.
    """

    def __init__(self, transform: Callable, roots: dict[str, str], ann_root: str, names: list[str]):
        super().__init__(transform, roots, ann_root, names, question_id=int)
        path = Path(ann_root) / "answer_list.json"
        self.answer_list = read_json(path)
        if not isinstance(self.answer_list, list) or not all(isinstance(answer, str) for answer in self.answer_list):
            raise UserError(f"{path}: expected a list of answers; take the file of BLIP's release")

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        return {**self.sample(index), "question_id": entry["question_id"], "answers": entry.get("answer")}

    @staticmethod
    def collate(samples: list[dict]) -> dict:
        """Returns the columns; "answers" is None where any question lacks them."""
        batch = collate(samples)
        return {**batch, "answers": None if None in batch["answers"] else batch["answers"]}


def weigh_answers(answer: list[str] | str, dataset: str) -> tuple[list[str], list[float]]:
    """Returns the different answers and their weights: the part of people who gave one; Visual Genome's single 0.2."""
    if dataset == "vg":
        return [answer], [GENOME_WEIGHT]
    counts = Counter(answer)
    return list(counts), [count / len(answer) for count in counts.values()]
