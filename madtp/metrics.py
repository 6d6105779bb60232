"""How predictions are scored: pure functions, arrays or lists in, a dict out."""

from collections import Counter
from collections.abc import Sequence


def accuracy(predicted: Sequence, targets: Sequence) -> dict[str, float]:
    """The share of predictions that equal their target."""
    return {"accuracy": _mean([one == other for one, other in zip(predicted, targets, strict=True)])}


def exact_match(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The share of texts that equal one of their references, but for spaces at the ends and between words."""
    hits = [
        " ".join(text.split()) in {" ".join(reference.split()) for reference in those}
        for text, those in zip(texts, references, strict=True)
    ]
    return {"exact_match": _mean(hits)}


def answer_agreement(answers: Sequence[str], given: Sequence[Sequence[str]]) -> dict[str, float]:
    """VQA's two simple scores: against the answer most people gave, and the share of people who gave the answer.

    Of several most frequent answers each counts as the majority's.
    """
    counts = [(people.count(answer), Counter(people)) for answer, people in zip(answers, given, strict=True)]
    return {
        "accuracy": _mean([own == max(everyone.values()) for own, everyone in counts]),
        "agreement": _mean([own / everyone.total() for own, everyone in counts]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
