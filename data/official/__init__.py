"""Data sets in the files in which their authors published them, converted to those that the tasks read."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from data.official import captions, questions, statements
from data.official.conversion import Rows
from data.official.records import LeftOut, Record, Source


class Form(NamedTuple):
    """The form of some official files.

    Attributes:
        read: yields the records of several.
        rows: what a record becomes.
        has_splits: the splits stand in the files, not in their names.
        draws: pictures can be given another split; else all is for training.
    """

    read: Callable[[Sequence[Source]], Iterator[Record | LeftOut]]
    rows: Rows
    has_splits: bool = False
    draws: bool = True


FORMS = {
    "vqav2": Form(questions.read_vqa, questions.question_rows),
    "visual_genome": Form(questions.read_genome, questions.question_rows, True, draws=False),
    "vizwiz": Form(questions.read_vizwiz, questions.question_rows),
    "daquar": Form(questions.read_daquar, questions.question_rows),
    "karpathy": Form(captions.read_karpathy, captions.caption_rows, True),
    "coco": Form(captions.read_coco, captions.caption_rows),
    "flickr8k": Form(captions.read_flickr8k, captions.caption_rows),
    "flickr30k": Form(captions.read_flickr30k, captions.caption_rows),
    "nlvr2": Form(statements.read_nlvr2, statements.statement_rows),
}
