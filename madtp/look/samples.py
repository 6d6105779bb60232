"""From a user's own pictures and words to the batches that a task takes."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from data.files import decode_image
from data.nlvr_dataset import MAX_WORDS as STATEMENT_WORDS
from data.retrieval_dataset import MAX_WORDS as CAPTION_WORDS
from data.text import clean_caption, clean_question
from madtp.method.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")  # of pictures in a folder


class Sample(NamedTuple):
    """One question about pictures.

    Attributes:
        pictures: one, or NLVR2's two.
        texts: none of captioning, the question, the statement, or the texts to choose from.
        names: of the pictures, for people.
    """

    pictures: tuple[Image.Image, ...]
    texts: tuple[str, ...]
    names: tuple[str, ...]


def find_pictures(paths: Iterable[str | Path]) -> list[Path]:
    """The files among some files and folders; those of a folder in order of their names.

    Raises:
        UserError: a path does not exist, or a folder has no pictures.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
            if not inside:
                raise UserError(f"{path} has no pictures in it ({', '.join(ENDINGS)}); name another folder or files")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such picture; give files or folders to --image")
    return found


def read_pictures(paths: Iterable[Path]) -> list[Image.Image]:
    """Decodes pictures as RGB.

    Raises:
        UserError: one cannot be decoded.
    """
    pictures = []
    for path in paths:
        try:
            pictures.append(decode_image(path))
        except ValueError as error:
            raise UserError(f"{path} is no picture that can be read: {error}; give another to --image") from error
    return pictures


def samples_of(task: str, pictures: Sequence[Image.Image], texts: Sequence[str], names: Sequence[str]) -> list[Sample]:
    """Puts pictures and texts together as a task wants them.

    NLVR2 takes the pictures two by two. Questions and statements: one for all, one for each, or several for the only
    picture (or pair). Retrieval chooses among all the texts for every picture.

    Raises:
        UserError: their numbers do not fit.
    """
    together = 2 if task == "nlvr" else 1
    if not pictures or len(pictures) % together:
        raise UserError(f"{task} takes pictures two by two, not {len(pictures)}; correct --image")
    groups = [tuple(pictures[start : start + together]) for start in range(0, len(pictures), together)]
    named = [tuple(names[start : start + together]) for start in range(0, len(pictures), together)]
    if task == "caption":
        if texts:
            raise UserError("caption takes no --text: it describes the picture")
        return [Sample(group, (), name) for group, name in zip(groups, named, strict=True)]
    if not texts:
        wanted = {"vqa": "a question", "nlvr": "a statement"}.get(task, "the texts to choose from")
        raise UserError(f"{task} needs {wanted}; give --text")
    if task.startswith("retrieval"):
        return [Sample(group, tuple(texts), name) for group, name in zip(groups, named, strict=True)]
    count = max(len(groups), len(texts))
    if not {len(groups), len(texts)} <= {1, count}:
        raise UserError(f"{len(texts)} texts do not fit {len(groups)} pictures or pairs; give one text or one for each")
    return [Sample(groups[i % len(groups)], (texts[i % len(texts)],), named[i % len(groups)]) for i in range(count)]


def batch_of(task: str, samples: Sequence[Sample], transform: Callable[[Image.Image], Tensor]) -> dict:
    """The batch that the task takes, answers left open.

    Args:
        task: its name.
        samples: of retrieval: with the same texts.
        transform: from a picture to [3, S, S].
    """

    def stacked(number: int) -> Tensor:
        return torch.stack([transform(sample.pictures[number]) for sample in samples])

    index = torch.arange(len(samples))
    if task == "nlvr":
        statements = [clean_caption(sample.texts[0], STATEMENT_WORDS) for sample in samples]
        images = {"image0": stacked(0), "image1": stacked(1)}
        return {**images, "text": statements, "target": torch.zeros_like(index), "index": index}
    batch = {"image": stacked(0), "index": index}
    if task == "caption":
        return {**batch, "image_id": index.tolist()}
    if task == "vqa":
        questions = [clean_question(sample.texts[0]) for sample in samples]
        return {**batch, "question": questions, "question_id": index.tolist(), "answers": None}
    return {**batch, "caption": [clean_text(text) for text in samples[0].texts]}


def clean_text(text: str) -> str:
    """A text of retrieval as the model reads it."""
    return clean_caption(text, CAPTION_WORDS)
