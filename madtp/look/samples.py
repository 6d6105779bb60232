"""From a user's own pictures and words to the batches that a task takes."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from data.decoding import ENDINGS, decode_image
from data.nlvr_dataset import MAX_WORDS as STATEMENT_WORDS
from data.retrieval_dataset import MAX_WORDS as CAPTION_WORDS
from data.text import clean_caption, clean_question
from madtp.method.errors import UserError


class BadPicture(UserError):
    """A picture that cannot be read."""


class Sample(NamedTuple):
    """One question about pictures, which are read when they are needed.

    Attributes:
        pictures: one file, or NLVR2's two.
        texts: none of captioning, the question, the statement, or the texts to choose from.
    """

    pictures: tuple[Path, ...]
    texts: tuple[str, ...]

    def pixels(self, transform: Callable[[Image.Image], Tensor], wanted: int) -> list[Tensor]:
        """Its pictures, each [3, S, S].

        Args:
            transform: of a decoded picture.
            wanted: S.

        Raises:
            BadPicture: one of them cannot be read.
        """
        return [transform(read_picture(path, wanted)) for path in self.pictures]


def find_pictures(paths: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """The files among some files and folders, and what in the folders could not be read or is none, a line for each.

    Those of a folder and of the folders in it come in order of their names. Hidden files are no pictures, whatever
    they are called: some systems put one beside every picture.

    Raises:
        UserError: a path does not exist, or a folder has no pictures, or none that may be read.
    """
    found, left_out = [], []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            closed: list[OSError] = []
            walk = os.walk(path, onerror=closed.append)
            files = sorted(Path(folder, name) for folder, _, names in walk for name in names)
            inside = [file for file in files if not other_kind(file)]
            left_out += [f"{error.filename} is left out: {error.strerror}" for error in closed]
            if not inside and closed:
                raise UserError(f"{closed[0].filename} cannot be read: {closed[0].strerror}; change its permissions")
            if not inside:
                raise UserError(f"{path} has no pictures in it ({', '.join(ENDINGS)}); name another folder or files")
            found += inside
            if others := Counter(filter(None, map(other_kind, files))):
                counts = ", ".join(f"{count} {kind}" for kind, count in others.items())
                left_out.append(f"{path}: {others.total()} files are no pictures by their names ({counts})")
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{given}: no such picture; give files or folders to --image")
    return found, left_out


def other_kind(file: Path) -> str:
    """What a file is called that is not called like a picture; of a picture nothing."""
    if file.name.startswith("."):
        return "hidden"
    ending = file.suffix.lower()
    return "" if ending in ENDINGS else ending or "without an ending"


def read_picture(path: Path, wanted: int = 0) -> Image.Image:
    """Decodes a picture as upright RGB; see `decode_image`.

    Raises:
        BadPicture: it cannot be decoded.
    """
    try:
        return decode_image(path, wanted)
    except (ValueError, OSError) as error:
        raise BadPicture(f"{path} is no picture that can be read: {error}") from error


def as_typed(text: str) -> str:
    """A text of the command line as its bytes mean it, whatever Python made of them by the terminal's locale.

    Raises:
        UserError: they are not UTF-8.
    """
    try:
        return text.encode(errors="surrogateescape").decode()
    except UnicodeDecodeError as error:
        raise UserError(f"--text {text!r} is no text in UTF-8; set the terminal to it") from error


def samples_of(task: str, pictures: Sequence[Path], texts: Sequence[str]) -> list[Sample]:
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
    if task == "caption":
        if texts:
            raise UserError("caption takes no --text: it describes the picture")
        return [Sample(group, ()) for group in groups]
    wanted = {"vqa": "a question", "nlvr": "a statement"}.get(task, "the texts to choose from")
    if not texts or not all(text.strip() for text in texts):  # as of a shell's variable that is not set
        raise UserError(f"{task} needs {wanted}; give --text")
    if wordless := [text for text in texts if not clean_text(text)]:
        raise UserError(f"--text {wordless[0]!r} has no word; {task} needs {wanted}")
    if task.startswith("retrieval"):
        return [Sample(group, tuple(texts)) for group in groups]
    count = max(len(groups), len(texts))
    if not {len(groups), len(texts)} <= {1, count}:
        raise UserError(f"{len(texts)} texts do not fit {len(groups)} pictures or pairs; give one text or one for each")
    return [Sample(groups[i % len(groups)], (texts[i % len(texts)],)) for i in range(count)]


def batch_of(task: str, samples: Sequence[Sample], pixels: Sequence[Sequence[Tensor]]) -> dict:
    """The batch that the task takes, answers left open.

    Args:
        task: its name.
        samples: of retrieval: with the same texts.
        pixels: for each sample those of its pictures, each [3, S, S].
    """

    def stacked(number: int) -> Tensor:
        return torch.stack([pictures[number] for pictures in pixels])

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
    asked = samples[0].texts
    return {**batch, "asked": list(asked), "caption": list(map(clean_text, asked))}


def clean_text(text: str) -> str:
    """A text of retrieval as the model reads it."""
    return clean_caption(text, CAPTION_WORDS)
