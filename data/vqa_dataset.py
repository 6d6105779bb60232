"""VQAv2, with Visual Genome's questions beside it for training."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch

from data.annotated import AnnotatedDataset
from data.files import is_text
from data.loading import collate
from data.text import clean_question
from utils import UserError, excerpt, read_json

GENOME_WEIGHT = 0.2
ANSWERS = "answer_list.json"
MAKE_LIST = "python -m madtp answers --config CONFIG"
ROOTS = {"vqa": "vqa_root", "vg": "vg_root"}  # where an entry's `dataset` keeps its images


def dataset_of(entry: dict) -> str:
    """The data set of an entry, "vqa" or "vg"; who brings a set of his own need not say it."""
    return entry.get("dataset", "vqa")


class _Questions(AnnotatedDataset):
    """Questions with their images, which are in the folder `vqa_root` or, for those of Visual Genome, `vg_root`."""

    @classmethod
    def wrong_value(cls, entry: dict) -> str:
        dataset = dataset_of(entry)
        known = isinstance(dataset, str) and dataset in ROOTS
        return "" if known else f"'dataset' should be one of {list(ROOTS)}, not {excerpt(dataset)}"

    @staticmethod
    def images_of(entry: dict) -> list[tuple[str, str]]:
        return [(ROOTS[dataset_of(entry)], entry["image"])]

    def texts_of(self, index: int) -> dict[str, list[str]]:
        return {"question": [clean_question(self.entries[index]["question"])]}

    def sample(self, index: int) -> dict:
        """What every sample has: {"image" [3, S, S], "question", "index"}."""
        (question,) = self.texts_of(index)["question"]
        return {"image": self.image(index), "question": question, "index": torch.tensor(index)}


class VQATrain(_Questions):
    """Samples with "answers", the different ones, and "weights"; a batch has them flat, with "n" answers a question."""

    fields = {"question": str, "image": str, "answer": (list, str)}
    identity = ("image", "question")

    @classmethod
    def wrong_label(cls, entry: dict) -> str:
        answer, dataset = entry["answer"], dataset_of(entry)
        if isinstance(answer, str) == (dataset == "vg"):
            return ""
        return f"dataset {dataset!r} with answer {excerpt(answer)}: vqa has a list of those given, vg a single string"

    def texts_of(self, index: int) -> dict[str, list[str]]:
        entry = self.entries[index]
        return {**super().texts_of(index), "answer": weigh_answers(entry["answer"], dataset_of(entry))[0]}

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        answers, weights = weigh_answers(entry["answer"], dataset_of(entry))
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
    """Samples with "question_id" and "answers": those given, or None where the file keeps them back (test).

    Attributes:
        answer_list: the answers to rank; empty where answers are generated.
    """

    fields = {"question": str, "image": str, "question_id": (int, str)}
    identity = ("question_id",)

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        super().__init__(transform, files, config)
        self.ann_root = config["ann_root"]
        self.answer_list = read_answer_list(self.ann_root) if config["inference"] == "rank" else []

    def all_texts(self) -> Iterator[tuple[str, str, str]]:
        yield from super().all_texts()
        yield from listed(self.ann_root, self.answer_list)

    @classmethod
    def wrong_label(cls, entry: dict) -> str:
        answer = entry.get("answer")
        if answer is None or isinstance(answer, list) and is_text(answer):
            return ""
        return f"'answer' should be a list of those given, not {excerpt(answer)}"

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        return {**self.sample(index), "question_id": entry["question_id"], "answers": entry.get("answer")}

    @staticmethod
    def collate(samples: list[dict]) -> dict:
        """Returns the columns; "answers" is None where any question lacks them."""
        batch = collate(samples)
        return {**batch, "answers": None if None in batch["answers"] else batch["answers"]}


class VQAValidation(VQAEvaluation):
    """The same of questions that all have answers, since they choose the checkpoint."""

    @classmethod
    def wrong_label(cls, entry: dict) -> str:
        if entry.get("answer") is None:
            return "no 'answer', and without it no checkpoint can be chosen"
        return super().wrong_label(entry)


def read_answer_list(ann_root: str | Path) -> list[str]:
    """Reads `answer_list.json`, the answers to rank.

    Raises:
        UserError: no such file, or no list of answers in it.
    """
    path = Path(ann_root) / ANSWERS
    answers = read_json(
        path, f"put it there, set ann_root, make it: {MAKE_LIST}, or rank none: --set inference=generate"
    )
    if not isinstance(answers, list) or not is_text(answers):
        raise UserError(f"{path}: expected a list of answers, not {excerpt(answers)}; make it: {MAKE_LIST}")
    return answers


def listed(ann_root: str | Path, answers: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """The answers to rank as `AnnotatedDataset.all_texts` gives those of entries: where, of what kind, and the text."""
    return ((f"{Path(ann_root) / ANSWERS}, entry {n}", "answer", answer) for n, answer in enumerate(answers))


def weigh_answers(answer: list[str] | str, dataset: str) -> tuple[list[str], list[float]]:
    """Returns the different answers and their weights: the part of people who gave one; Visual Genome's single 0.2."""
    if dataset == "vg":
        return [answer], [GENOME_WEIGHT]
    counts = Counter(answer)
    return list(counts), [count / len(answer) for count in counts.values()]
