"""VQA's accuracy (Goyal et al., 2017): how many of the people asked gave an answer, by the rules of the challenge."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from statistics import fmean

FEW = 3  # answers to a question, for which the challenge's rule makes no sense

SMALL_NUMBERS = "zero one two three four five six seven eight nine ten".split()
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(SMALL_NUMBERS)}}
ARTICLES = {"a", "an", "the"}
CONTRACTIONS = """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't
    oughtn't shan't shouldn't wasn't weren't won't wouldn't could've might've must've not've should've they've
    we've what've where've who've would've you've he'd how'd it'd somebody'd someone'd something'd there'd
    they'd where'd who'd you'd how'll it'll somebody'll someone'll something'll they'll what'll who'll why'll
    you'll there're they're what're why're you're he's how's somebody's someone's that's there's what's when's
    where's who's why's ma'am o'clock 'twas y'all couldn't've hadn't've mightn't've shouldn't've wouldn't've
    he'd've it'd've she'd've somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've
    you'd've 'ow's'at y'all'll y'all'd've
""".split()

MARKS = re.compile(r"""[;/\[\]"{}()=+\\_\-><@`,?!]""")
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")


def vqa_accuracy(answers: Sequence[str], given: Sequence[Sequence[str]]) -> dict[str, float]:
    """The mean accuracy of answers, in percent, against those that people gave to the same questions."""
    scores = [agreement(answer, people) for answer, people in zip(answers, given, strict=True)]
    return {"accuracy": 100 * fmean(scores)}


def agreement(answer: str, people: Sequence[str]) -> float:
    """min(n / 3, 1) for n people who agree, averaged over the sets that leave out one of them.

    The rule is made for ten people. Of one to three it is the share that agrees: of one, whether it is the same answer.
    """
    answer = normalise(answer)
    agree = [normalise(person) == answer for person in people]
    if len(people) <= FEW:
        return fmean(agree)
    return fmean(min((sum(agree) - left_out) / 3, 1) for left_out in agree)


def attainable(answers: Iterable[str], given: Sequence[Sequence[str]]) -> tuple[float, float]:
    """What a list of answers allows: the share of questions with some right answer in it, and the best accuracy.

    Both are in percent. Right is what at least one person gave.
    """
    listed = {normalise(answer) for answer in answers}
    best = [
        max((agreement(answer, people) for answer in {normalise(person) for person in people} & listed), default=0.0)
        for people in given
    ]
    return 100 * fmean(score > 0 for score in best), 100 * fmean(best)


@lru_cache(maxsize=2**16)
def normalise(answer: str) -> str:
    """An answer as the server compares it: lower case, digits for small numbers, no articles, no punctuation."""
    words = _without_punctuation(" ".join(answer.split())).lower().split()
    words = [NUMBERS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(APOSTROPHES.get(word, word) for word in words)


def _without_punctuation(text: str) -> str:
    """Removes a mark that stands beside a space somewhere and parts words by one that does not.

    Every mark is removed from a text with a number like 1,000, and a period stays only before a digit.
    """
    remove_all = COMMA_IN_NUMBER.search(text) is not None

    def replacement(mark: re.Match) -> str:
        beside_space = f"{mark[0]} " in text or f" {mark[0]}" in text
        return "" if remove_all or beside_space else " "

    return PERIOD.sub("", MARKS.sub(replacement, text))


def _misspelt() -> Iterator[tuple[str, str]]:
    """Contractions that lack one of their apostrophes, with what they should be."""
    for word in CONTRACTIONS:
        for place in (index for index, letter in enumerate(word) if letter == "'"):
            yield word[:place] + word[place + 1 :], word


APOSTROPHES = dict(_misspelt())
