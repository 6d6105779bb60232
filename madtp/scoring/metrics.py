"""How predictions are scored: pure functions, arrays or lists in, a dict of percentages out."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


def accuracy(predicted: Sequence, targets: Sequence) -> dict[str, float]:
    """How many predictions equal their target."""
    return {"accuracy": _percent([one == other for one, other in zip(predicted, targets, strict=True)])}


def exact_match(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """How many texts equal one of their references, but for spaces at the ends and between words."""
    hits = [
        " ".join(text.split()) in {" ".join(reference.split()) for reference in those}
        for text, those in zip(texts, references, strict=True)
    ]
    return {"exact_match": _percent(hits)}


def retrieval_recall(image_to_text: Tensor, text_to_image: Tensor, owners: Sequence[int]) -> dict[str, float]:
    """Recall in both directions, by the names of BLIP's logs.

    Args:
        image_to_text: [I, T], scores of the texts for each image; -inf where one is not even a candidate.
        text_to_image: [T, I], scores of the images for each text.
        owners: [T], the image that each text belongs to.

    Returns:
        R@1, R@5, R@10 and their mean, of images that look for texts (`txt_r1`, ..., `txt_r_mean`) and of texts that
        look for images (`img_r1`, ...), and the mean of both means (`r_mean`).
    """
    belongs = torch.arange(len(image_to_text)).unsqueeze(1) == torch.as_tensor(owners)  # [I, T]
    return _both_ways(recall(image_to_text, belongs), recall(text_to_image, belongs.T))


def similarity_recall(image: Tensor, text: Tensor, owners: Sequence[int], block: int = 1024) -> dict[str, float]:
    """The same, where the score is the inner product of features; a block of queries is compared at a time.

    Args:
        image: [I, E].
        text: [T, E].
        owners: [T], the image that each text belongs to.
        block: how many queries.
    """
    numbers, owners = torch.arange(len(image), device=image.device), torch.as_tensor(owners, device=image.device)

    def blockwise(queries: Tensor, own: Tensor, others: Tensor, their: Tensor) -> dict[int, float]:
        totals = Counter()
        for some, number in zip(queries.split(block), own.split(block), strict=True):
            recalls = recall(some @ others.T, number.unsqueeze(1) == their)
            totals.update({k: len(some) * share for k, share in recalls.items()})
        return {k: total / len(queries) for k, total in totals.items()}

    with torch.autocast(image.device.type, enabled=False):
        return _both_ways(blockwise(image, numbers, text, owners), blockwise(text, owners, image, numbers))


def _both_ways(texts: dict[int, float], images: dict[int, float]) -> dict[str, float]:
    """Names the recalls of images that look for texts and of texts that look for images, and adds their means."""
    result = {}
    for name, recalls in (("txt", texts), ("img", images)):
        result |= {f"{name}_r{k}": share for k, share in recalls.items()}
        result[f"{name}_r_mean"] = sum(recalls.values()) / len(recalls)
    return {**result, "r_mean": (result["txt_r_mean"] + result["img_r_mean"]) / 2}


def recall(scores: Tensor, relevant: Tensor, ranks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
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
