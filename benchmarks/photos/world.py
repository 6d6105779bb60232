"""The photos: where they lie, which belong to a split, and what people said and asked of them.

Everything is read from annotation files of BLIP's form; `python -m benchmarks.photos --prepare` writes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.text import clean_caption, clean_question
from utils import UserError, read_json

MODELLED = ("retrieval", "caption", "vqa")  # tasks that have a dense model of their own
STATEMENTS = "statements"  # a captioner tells captions of a photo from those of another
RERANKING = "reranking"  # retrieval, whose best candidates a captioner judges once more
TASKS = (*MODELLED, STATEMENTS)
ALL_TASKS = (*TASKS, RERANKING)
MODEL = {task: task for task in MODELLED} | {STATEMENTS: "caption", RERANKING: "retrieval"}  # that answers
FOLDER = dict.fromkeys(ALL_TASKS, "flickr8k") | {"vqa": "daquar"}
ANNOTATION = {"caption": "coco_karpathy", "vqa": "vqa", STATEMENTS: STATEMENTS}
ANNOTATION |= dict.fromkeys(("retrieval", RERANKING), "flickr30k")
TRUE, FALSE = "yes", "no"
LOOKED_AT = {"flickr8k": 512, "daquar": 0}  # test photos on which prototypes were judged: no final count has them
MAX_WORDS = 30
PREPARE = "`python -m benchmarks.photos --prepare` writes it"


@dataclass(frozen=True)
class Places:
    """Where things lie.

    Attributes:
        data: the photos' folders, and `annotation`.
        towers: the checkpoint and configuration made of the pre-trained towers.
        output: tokens of the frozen image tower, and dense models.
        results: JSON lines.
    """

    data: Path
    towers: Path
    output: Path
    results: Path

    def photos(self, task: str) -> Path:
        """The folder of a task's photos."""
        return self.data / FOLDER[task]

    def annotation(self, name: str) -> Path:
        """An annotation file by its name without ending."""
        return self.data / "annotation" / f"{name}.json"

    def dense(self, task: str, blind: bool = False) -> Path:
        """The checkpoint of a dense model, or of its twin that never saw a photo."""
        return self.output / f"{task}{'_blind' if blind else ''}.pth"

    def tokens(self, folder: str) -> Path:
        """What the frozen image tower makes of a folder of photos."""
        return self.output / f"{folder}_tokens.pth"


@dataclass(frozen=True)
class Photo:
    """One photo of a split.

    Attributes:
        name: of its file.
        texts: its captions or questions.
        answers: the answer to every question; none for captions.
    """

    name: str
    texts: tuple[str, ...]
    answers: tuple[str, ...] = ()


def read_split(places: Places, task: str, split: str, final: bool = False) -> list[Photo]:
    """The photos of a split, in the order of its file.

    Args:
        places: where the annotation lies.
        task: one of `ALL_TASKS`.
        split: train, val or test.
        final: leave out the test photos that were looked at before.
    """
    file = places.annotation(f"{ANNOTATION[task]}_{split}")
    entries = read_json(file, PREPARE)
    grouped: dict[str, list[tuple[str, str]]] = {}
    for entry in entries:
        grouped.setdefault(entry["image"], []).extend(_said(entry))
    photos = [
        Photo(name, tuple(text for text, _ in said), tuple(answer for _, answer in said if answer))
        for name, said in grouped.items()
    ]
    seen = LOOKED_AT[FOLDER[task]] if final else 0
    if len(photos) <= seen:
        beside = f" besides the first {seen}, which --final leaves out" if seen else ""
        raise UserError(f"{file} has no photos to score{beside}; {PREPARE}")
    return photos[seen:]


def _said(entry: dict) -> list[tuple[str, str]]:
    """Captions, or a question and its answer, of an entry of any of the files."""
    if "question" in entry:
        answers = entry["answer"] if isinstance(entry["answer"], list) else [entry["answer"]]
        return [(clean_question(entry["question"]), answers[0])]
    captions = entry["caption"] if isinstance(entry["caption"], list) else [entry["caption"]]
    return [(clean_caption(caption, MAX_WORDS), "") for caption in captions]


def answer_list(places: Places) -> list[str]:
    """The answers that a VQA model chooses from."""
    return read_json(places.annotation("answer_list"), PREPARE)


def texts_of(photos: Sequence[Photo]) -> tuple[list[str], list[int]]:
    """All texts, photo after photo, and of each the number of its photo."""
    texts = [text for photo in photos for text in photo.texts]
    return texts, [number for number, photo in enumerate(photos) for _ in photo.texts]
