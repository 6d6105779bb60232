"""Statements about photos: their captions, and as false ones captions of other photos that share many words with them.

Every caption is lent once, so that a judge sees it twice, with the photo that it was written of and with another one.

Shapes: n photos of a block.
"""

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from benchmarks.photos.world import ANNOTATION, FALSE, FOLDER, LOOKED_AT, STATEMENTS, TRUE, Photo, Places, read_split
from utils import write_atomic

BLOCK = 64  # photos that lend each other their captions
LEAST = 1e-9  # more than rounding, so that swaps end
OWN = -9.0  # what a photo shares with its own captions, so that it borrows none of them


def prepare_statements(places: Places) -> None:
    """Writes the statements of every split: entries with `image`, `question` and `answer`."""
    for split in ("train", "val", "test"):
        photos = read_split(places, "retrieval", split)
        seen = LOOKED_AT[FOLDER[STATEMENTS]] if split == "test" else 0  # what --final leaves out lends to itself alone
        entries = [
            {"question_id": number, "image": name, "dataset": "vqa", "question": text, "answer": answer}
            for number, (name, text, answer) in enumerate([*statements(photos[:seen]), *statements(photos[seen:])])
        ]
        write_atomic(places.annotation(f"{ANNOTATION[STATEMENTS]}_{split}"), json.dumps(entries))


def statements(photos: Sequence[Photo]) -> Iterator[tuple[str, str, str]]:
    """Photo, sentence, and whether it is true, photo after photo; who finds no partner has nothing false."""
    words = [set(" ".join(photo.texts).split()) for photo in photos]
    weight = rarity(words)
    borrowed: dict[int, list[str]] = defaultdict(list)
    generator = random.Random(0)
    for place in range(max((len(photo.texts) for photo in photos), default=0)):
        having = [number for number, photo in enumerate(photos) if len(photo.texts) > place]
        generator.shuffle(having)
        for start in range(0, len(having), BLOCK):
            block = having[start : start + BLOCK]
            texts = [photos[number].texts[place] for number in block]
            shared = [
                [OWN if text in photos[number].texts else overlap(text, words[number], weight) for text in texts]
                for number in block
            ]
            for row, number, other in zip(shared, block, exchanged(shared), strict=True):
                borrowed[number] += [texts[other]] if row[other] > OWN else []
    for number, photo in enumerate(photos):
        yield from ((photo.name, text, TRUE) for text in photo.texts)
        yield from ((photo.name, text, FALSE) for text in borrowed[number])


def rarity(words: Sequence[set[str]]) -> dict[str, float]:
    """How much a word tells, by the number of photos that it is said of: ln(photos / those)."""
    said = Counter(word for some in words for word in some)
    return {word: math.log(len(words) / number) for word, number in said.items()}


def overlap(text: str, words: set[str], weight: dict[str, float]) -> float:
    """The share of what a sentence tells that is also said of another photo."""
    told = {word: weight[word] for word in text.split()}
    whole = sum(told.values())
    return sum(value for word, value in told.items() if word in words) / whole if whole else 0.0


def exchanged(shared: list[list[float]]) -> list[int]:
    """Whose caption each photo of a block borrows: each is lent once, and no swap of two would share more.

    Args:
        shared: [n][n], what a photo (row) shares with the caption of a photo (column).
    """
    n, better = len(shared), True
    order = [(number + 1) % n for number in range(n)]
    while better:
        better = False
        for one, two in combinations(range(n), 2):
            ours, theirs = order[one], order[two]
            gain = shared[one][theirs] + shared[two][ours] - shared[one][ours] - shared[two][theirs]
            if gain > LEAST:
                order[one], order[two], better = theirs, ours, True
    return order
