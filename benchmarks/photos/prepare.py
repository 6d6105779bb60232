"""Makes every annotation file of the photos from the forms in which people get them.

    python -m benchmarks.photos --prepare --captions dataset_flickr8k.json \\
        --questions qa.894.raw.train.txt qa.894.raw.test.txt --data datasets/photos

Captions come from Karpathy's `dataset_flickr8k.json`, or from `Flickr8k.token.txt` with the three files that list the
photos of a split. DAQUAR's questions are split anew, by photo: in the order of the MD5 of their names the first 150
photos validate, the next 250 test, the others train. Statements are made of the captions.
"""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.photos.statements import prepare_statements
from benchmarks.photos.world import Places
from data.official.captions import COCO, FLICKR
from data.official.questions import read_daquar
from data.official.records import Source
from madtp.__main__ import main as command
from madtp.scoring.answers import frequent_answers
from utils import UserError, prepare_output, read_json, write_atomic

QUESTIONS = {"val": 150, "test": 250}  # photos
LEAST = 2  # questions that an answer of the list is given to


def prepare(places: Places, captions: Sequence[Path], questions: Sequence[Path]) -> None:
    """Writes what a task reads into `annotation`.

    Args:
        places: where the photos are, and the annotation goes.
        captions: one JSON file of Karpathy's, or the four files of Flickr8k.
        questions: DAQUAR's text files.
    """
    if not (captions or questions):
        raise UserError("--prepare has nothing to read: name files with --captions, --questions or both")
    out = prepare_output(places.data / "annotation")
    form = "karpathy" if any(file.suffix == ".json" for file in captions) else "flickr8k"
    for name in (COCO, FLICKR) if captions else ():
        looked_for = ["--images", str(places.photos("caption"))]
        run([form, *map(str, captions), "--out", str(out), "--name", name, *looked_for])
    if captions:
        prepare_statements(places)
    if questions:
        prepare_questions(out, questions, places.photos("vqa"))


def prepare_questions(out: Path, questions: Sequence[Path], photos: Path) -> None:
    """Questions by split, and the answers that a model chooses from."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = []
        for split, names in split_by_name(photos_of(questions)).items():
            path = Path(folder) / f"{split}.txt"
            path.write_text("\n".join(names) + "\n")
            drawn += [f"--{split}", str(path)]
        run(["daquar", *(f"train={file}" for file in questions), "--out", str(out), "--images", str(photos), *drawn])
    answers = frequent_answers((entry["answer"] for entry in read_json(out / "vqa_train.json", "")), LEAST)
    write_atomic(out / "answer_list.json", json.dumps(answers))


def photos_of(questions: Sequence[Path]) -> list[str]:
    """The photos that are asked about, without ending."""
    records = read_daquar([Source(file, "train") for file in questions])
    return sorted({Path(record.pictures[0][0]).stem for record in records})


def split_by_name(photos: Sequence[str]) -> dict[str, list[str]]:
    """The photos that validate and test, by the MD5 of their names."""
    order = sorted(photos, key=lambda name: hashlib.md5(name.encode()).hexdigest())
    chosen, start = {}, 0
    for split, count in QUESTIONS.items():
        chosen[split] = order[start : start + count]
        start += count
    return chosen


def run(arguments: list[str]) -> None:
    """The command that converts official files.

    Raises:
        UserError: it failed, and has said why.
    """
    if command(["convert", *arguments]):
        raise UserError(f"`python -m madtp convert {' '.join(arguments)}` did not succeed")
