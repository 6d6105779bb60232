"""How predictions are scored: pure functions, arrays or lists in, a dict of percentages out."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RANKS = (1, 5, 10)


def accuracy(predicted: Sequence, targets: Sequence) -> dict[str, float]:
    """How many predictions equal their target."""
    return {"accuracy": _percent([one == other for one, other in zip(predicted, targets, strict=True)])}


def exact_match(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """How many texts equal one of their references, but for spaces at the ends and between words.

    References without a word do not count, nor do texts that have no others; where none has, nothing matches.
    """
    worded = [{" ".join(reference.split()) for reference in those} - {""} for those in references]
    hits = [" ".join(text.split()) in those for text, those in zip(texts, worded, strict=True) if those]
    return {"exact_match": _percent(hits) if hits else 0.0}


class Matches:
    """Which texts belong to which images, where several images may be the same, and several texts.

    Args:
        owners: [T], the image that each text came with.
        images: [I], a number for each image, equal for the same ones; by default all differ.
        texts: [T], likewise.
    """

    def __init__(self, owners: Sequence[int], images: Sequence[int] | None = None, texts: Sequence[int] | None = None):
        owners = torch.as_tensor(owners)
        self.texts = torch.arange(len(owners)) if texts is None else torch.as_tensor(texts)
        self.images = torch.arange(int(owners.max()) + 1) if images is None else torch.as_tensor(images)
        self.pairs = torch.stack([self.images[owners], self.texts])  # [2, T]

    def of_images(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Which texts are right for some images: boolean [stop - start, T]."""
        return self._rows(self.pairs, self.images[start:stop], self.texts)

    def of_texts(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Which images are right for some texts: boolean [stop - start, I]."""
        return self._rows(self.pairs.flip(0), self.texts[start:stop], self.images)

    @staticmethod
    def _rows(pairs: Tensor, queries: Tensor, candidates: Tensor) -> Tensor:
        """Marks what is paired with each query, and then the candidates that are the same."""
        wanted, row = queries.unique(return_inverse=True)
        place = torch.searchsorted(wanted, pairs[0]).clamp(max=len(wanted) - 1)
        mine = wanted[place] == pairs[0]
        marked = torch.zeros(len(wanted), int(candidates.max()) + 1, dtype=torch.bool)
        marked[place[mine], pairs[1][mine]] = True
        return marked[row][:, candidates]


def retrieval_recall(image_to_text: Tensor, text_to_image: Tensor, matches: Matches) -> dict[str, float]:
    """Recall in both directions, by the names of BLIP's logs.

    Args:
        image_to_text: [I, T], scores of the texts for each image; -inf where one is not even a candidate.
        text_to_image: [T, I], scores of the images for each text.
        matches: which belong together.

    Returns:
        R@1, R@5, R@10 and their mean, of images that look for texts (`txt_r1`, ..., `txt_r_mean`) and of texts that
        look for images (`img_r1`, ...), and the mean of both means (`r_mean`).
    """
    return _both_ways(recall(image_to_text, matches.of_images()), recall(text_to_image, matches.of_texts()))


def similarity_recall(image: Tensor, text: Tensor, matches: Matches, block: int = 1024) -> dict[str, float]:
    """The same, where the score is the inner product of features; a block of queries is compared at a time.

    Args:
        image: [I, E].
        text: [T, E].
        matches: which belong together.
        block: how many queries.
    """

    def blockwise(queries: Tensor, others: Tensor, right: Callable[[int, int], Tensor]) -> dict[int, float]:
        totals = Counter()
        for start in range(0, len(queries), block):
            some = queries[start : start + block]
            recalls = recall(some @ others.T, right(start, start + block).to(some.device))
            totals.update({k: len(some) * share for k, share in recalls.items()})
        return {k: total / len(queries) for k, total in totals.items()}

    with torch.autocast(image.device.type, enabled=False):
        return _both_ways(blockwise(image, text, matches.of_images), blockwise(text, image, matches.of_texts))


def _both_ways(texts: dict[int, float], images: dict[int, float]) -> dict[str, float]:
    """Names the recalls of images that look for texts and of texts that look for images, and adds their means."""
    result = {}
    for name, recalls in (("txt", texts), ("img", images)):
        result |= {f"{name}_r{k}": share for k, share in recalls.items()}
        result[f"{name}_r_mean"] = sum(recalls.values()) / len(recalls)
    return {**result, "r_mean": (result["txt_r_mean"] + result["img_r_mean"]) / 2}


def recall(scores: Tensor, relevant: Tensor, ranks: Sequence[int] = RANKS) -> dict[int, float]:
    """R@k: how many queries find something relevant among their k best candidates.

    Of equal scores the irrelevant come first, so that a model which cannot tell candidates apart finds nothing.

    Args:
        scores: [Q, C]; -inf for what is no candidate. What is not a number is never found.
        relevant: [Q, C], boolean.
        ranks: the values of k.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    found = (best > -torch.inf).squeeze(1)
    ahead = (~relevant & ~(scores < best)).sum(dim=1)
    return {k: _percent((found & (ahead < k)).tolist()) for k in ranks}


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)
