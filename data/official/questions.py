"""Questions about pictures: VQAv2's pairs of files, Visual Genome's, VizWiz's and DAQUAR's."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.official import stream
from data.official.records import LeftOut, Record, Source, checked, coco_places, places, read_lines
from utils import UserError, excerpt

QUESTIONS, GENOME = "vqa", "vg"
GENOME_FOLDERS = ("image", "VG_100K", "VG_100K_2", "images")  # BLIP's files have the first, the archives the others
DAQUAR_PICTURE = re.compile(r"\s*(?:\b(?:in|on|of)\s+)?(?:\b(?:the|this)\s+)?\bimage\s?\d+\s*(?=\?|$)", re.IGNORECASE)
NAMED_PICTURE = re.compile(r"\bimage\s?(\d+)\b", re.IGNORECASE)


def question_rows(record: Record, names: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """The file and the entry of a question; Visual Genome's are all for training."""
    file = "vg_qa" if record.files == GENOME else f"{QUESTIONS}_{record.split}"
    yield file, {**record.content, "image": names[0], "dataset": record.files}


def read_vqa(sources: Sequence[Source]) -> Iterator[Record | LeftOut]:
    """Reads VQAv2's files, each annotations file with the questions of its subset; test sets have questions alone.

    The archive of the test set holds a part of it once more, test-dev.

    Raises:
        UserError: a file cannot be read, is not of this form, or lacks the one that belongs to it.
    """
    questions, annotations = subsets(sources)
    for subset, source in annotations.items():
        if subset not in questions:
            raise UserError(f"{source.path}: give the questions too, v2_OpenEnded_mscoco_{subset}_questions.json")
    for subset, source in questions.items():
        whole = subset.replace("test-dev", "test")
        split = source.own_split(whole)
        if subset in annotations:
            yield from answered_questions(source.path, annotations[subset].path, subset, split)
        elif subset != whole and whole in questions:
            count = sum(1 for _ in stream.entries(source.path, "questions"))
            yield LeftOut(f"questions of {subset}, which are among those of {whole}", count)
        elif split == "test":
            for number, question in enumerate(stream.entries(source.path, "questions")):
                checked_question(source.path, number, question)
                yield vqa_record(split, whole, question["question_id"], question["question"], question["image_id"])
        else:
            raise UserError(f"{source.path}: give the answers too, v2_mscoco_{subset}_annotations.json")


def subsets(sources: Sequence[Source]) -> tuple[dict[str, Source], dict[str, Source]]:
    """Files of questions and files of annotations, each by the subset of COCO that they are about, like train2014.

    Raises:
        UserError: a file is neither, or a second one about its subset.
    """
    kinds = {"questions": {}, "annotations": {}}
    for source in sources:
        kind, subset = kinds.get(stream.first_list(source.path)), stream.value(source.path, "data_subtype")
        if kind is None or not isinstance(subset, str):
            raise UserError(f"{source.path}: expected VQAv2's questions or annotations with their 'data_subtype'")
        if subset in kind:
            raise UserError(f"{source.path}: as {kind[subset].path} it is about {subset}; give one of them")
        kind[subset] = source
    return kinds["questions"], kinds["annotations"]


def answered_questions(asked: Path, answered: Path, subset: str, split: str) -> Iterator[Record | LeftOut]:
    """The questions of a file with the answers of another, which may be in another order.

    Raises:
        UserError: an entry is not of this form, or answers no question of the file.
    """
    waiting = {}
    for number, question in enumerate(stream.entries(asked, "questions")):
        checked_question(asked, number, question)
        waiting[question["question_id"]] = question["question"], question["image_id"]
    for number, one in enumerate(stream.entries(answered, "annotations")):
        checked(answered, number, one, {"question_id": int})
        if one["question_id"] not in waiting:
            raise UserError(f"{answered}, entry {number}: question {one['question_id']} is not in {asked}, or is twice")
        given = given_answers(answered, number, one)
        yield vqa_record(split, subset, one["question_id"], *waiting.pop(one["question_id"]), given)
    if waiting:
        yield LeftOut("questions without answers", len(waiting))


def given_answers(path: Path, number: int, entry: dict) -> list[str]:
    """What people answered to a question, as VQAv2 and VizWiz have it: [{"answer": ...}, ...].

    Raises:
        UserError: that is not what the entry has.
    """
    answers = entry.get("answers")
    if not isinstance(answers, list) or not answers:
        raise UserError(f"{path}, entry {number}: 'answers' should be a list, it is {excerpt(answers)}")
    return [checked(path, number, answer, {"answer": str})["answer"] for answer in answers]


def checked_question(path: Path, number: int, question: object) -> None:
    """Raises a UserError about what is no question as VQAv2 has it."""
    checked(path, number, question, {"question_id": int, "question": str, "image_id": int})


def vqa_record(
    split: str, subset: str, number: int, question: str, image: int, answers: list[str] | None = None
) -> Record:
    """A question about one of COCO's pictures, whose names follow from their numbers."""
    content = {"question_id": number, "question": question} | ({"answer": answers} if answers else {})
    return Record(split, QUESTIONS, (coco_places(f"COCO_{subset}_{image:012d}.jpg", subset),), content)


def read_genome(sources: Sequence[Source]) -> Iterator[Record | LeftOut]:
    """Reads Visual Genome's `question_answers.json`; answers lose their capital and their period, as BLIP has them.

    Raises:
        UserError: a file cannot be read, or an entry is not of this form.
    """
    for path, _ in sources:
        for number, image in enumerate(stream.entries(path)):
            asked = image.get("qas") if isinstance(image, dict) else None
            if not isinstance(asked, list):
                raise UserError(f"{path}, entry {number}: expected {{'id': ..., 'qas': [...]}}, found {excerpt(image)}")
            for one in asked:
                checked(path, number, one, {"qa_id": int, "image_id": int, "question": str, "answer": str})
                answer = one["answer"].strip().rstrip(".").lower()
                if not answer:
                    yield LeftOut("empty answers")
                    continue
                content = {"question_id": one["qa_id"], "question": one["question"], "answer": answer}
                folder, *others = places(f"{one['image_id']}.jpg", *GENOME_FOLDERS)
                yield Record("train", GENOME, ((folder, *others),), content)


def read_vizwiz(sources: Sequence[Source]) -> Iterator[Record | LeftOut]:
    """Reads VizWiz's `train.json`, `val.json` and `test.json`, the last without answers; ids are pictures' names.

    Raises:
        UserError: a file cannot be read, its name tells no split, or an entry is not of this form.
    """
    for source in sources:
        split = source.own_split()
        for number, one in enumerate(stream.entries(source.path)):
            checked(source.path, number, one, {"image": str, "question": str})
            content = {"question_id": one["image"], "question": one["question"]}
            if "answers" in one:
                content["answer"] = given_answers(source.path, number, one)
            yield Record(split, QUESTIONS, (places(one["image"], split),), content)


def read_daquar(sources: Sequence[Source]) -> Iterator[Record | LeftOut]:
    """Reads DAQUAR's `qa.894.raw.train.txt` and its like: a line asks, the next one answers.

    The picture that a question names goes out of it: "what is in the image3 ?" becomes "what is?", and a number in the
    middle of a question goes alone.

    Raises:
        UserError: a file cannot be read, its name tells no split, a line answers nothing, or a question names no
            picture.
    """
    number = 0
    for source in sources:
        lines, split = read_lines(source.path), source.own_split()
        if len(lines) % 2:
            raise UserError(f"{source.path}: {len(lines)} lines, which are not questions and answers in turn")
        for line in range(0, len(lines), 2):
            named = NAMED_PICTURE.findall(lines[line])
            if not named:
                raise UserError(f"{source.path}, line {line + 1}: names no picture: {excerpt(lines[line])}")
            number += 1
            question = NAMED_PICTURE.sub("image", DAQUAR_PICTURE.sub("", lines[line])).strip().removesuffix("?").strip()
            answer = lines[line + 1].strip().replace("_", " ")
            content = {"question_id": number, "question": f"{question}?", "answer": [answer]}
            yield Record(split, QUESTIONS, (daquar_places(named[-1]),), content)


def daquar_places(number: str) -> tuple[str, ...]:
    """Where a picture of DAQUAR may be."""
    return (*places(f"image{number}.png", "nyu_depth_images"), *places(f"image{number}.jpg", "nyu_depth_images"))
