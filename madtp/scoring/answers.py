"""The list of answers to rank, `answer_list.json`, built from the training questions.

    python -m madtp answers --config configs/vqa.yaml

The answer to a question is the one that most people gave, in the form in which the challenge compares answers; what is
the answer to more than eight questions is listed (Teney et al., 2018, section 3.2). Of VQAv2's training and validation
questions that should be some 3,100, the size of the list that BLIP was released with. Visual Genome's questions, with
one person's answer each, are left out.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data import splits
from data.vqa_dataset import dataset_of
from madtp.method.errors import UserError
from madtp.run import config as configuration
from madtp.scoring.vqa_accuracy import normalise
from madtp.shared.files import prepare_output, write_atomic


def frequent_answers(questions: Iterable[Sequence[str]], least: int) -> list[str]:
    """The answers to at least `least` questions, the most frequent first, equally frequent ones by the alphabet.

    Args:
        questions: for each what people answered; where two answers are equally frequent the first counts.
        least: how many questions.
    """
    counts = Counter(Counter(map(normalise, answers)).most_common(1)[0][0] for answers in questions)
    del counts[""]  # of people who answered "the" or "?"
    return sorted((answer for answer in counts if counts[answer] >= least), key=lambda one: (-counts[one], one))


def run(args: argparse.Namespace) -> None:
    """Writes the list.

    Raises:
        UserError: there is one already, or no answer is frequent enough.
    """
    if args.least < 1:
        raise UserError(f"--least is {args.least}, expected at least 1")
    config = configuration.resolve(args.config, "vqa", args.set)
    root = Path(config["ann_root"])
    path = Path(args.out or root / "answer_list.json")
    if path.exists():
        raise UserError(f"{path} is there already; remove it or name another with --out")
    trained, files = splits("vqa", config)["train"]
    entries = [entry for file in files for entry in trained.read(file)]
    asked = [entry["answer"] for entry in entries if dataset_of(entry) == "vqa"]
    answers = frequent_answers(asked, args.least)
    if not answers:
        raise UserError(f"no answer of {len(asked)} questions is that of {args.least} of them; lower --least")
    prepare_output(path.parent)
    write_atomic(path, json.dumps(answers))
    print(f"{len(answers)} answers, each to {args.least} of {len(asked)} questions or more: {path}")
