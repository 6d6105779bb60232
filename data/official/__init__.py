"""Data sets in the files in which their authors published them, converted to those that the tasks read."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from data.official import captions, questions, statements
from data.official.conversion import Rows
from data.official.records import LeftOut, Record, Source


class Form(NamedTuple):
    """The form of some official files.

    Attributes:
        files: what they are called.
        read: yields the records of several.
        rows: what a record becomes.
        has_splits: the splits stand in the files, not in their names.
    """

    files: str
    read: Callable[[Sequence[Source]], Iterator[Record | LeftOut]]
    rows: Rows
    has_splits: bool = False


FORMS = {
    "vqav2": Form(
        "v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_*_annotations.json",
        questions.read_vqa,
        questions.question_rows,
    ),
    "visual_genome": Form("question_answers.json", questions.read_genome, questions.question_rows, True),
    "daquar": Form("qa.894.raw.train.txt, qa.894.raw.test.txt", questions.read_daquar, questions.question_rows),
    "karpathy": Form(
        "dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json",
        captions.read_karpathy,
        captions.caption_rows,
        True,
    ),
    "coco": Form("captions_train2014.json, captions_val2014.json", captions.read_coco, captions.caption_rows),
    "flickr8k": Form("Flickr8k.token.txt, Flickr_8k.trainImages.txt, ...", captions.read_flickr, captions.caption_rows),
    "nlvr2": Form("train.json, dev.json, test1.json", statements.read_nlvr2, statements.statement_rows),
}
